"""`fastfeat check`, `backup` and `restore`: a store's directory, in use or not, and copies of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from .options import AsJson

if TYPE_CHECKING:
    from fastfeat.inspection import BackupInfo, CheckReport

Directory = Annotated[str, typer.Argument(help="The directory of a store.")]
Snapshots = Annotated[
    str | None, typer.Option(help="The URL of its snapshots, where they do not lie in the directory.")
]
History = Annotated[str | None, typer.Option(help="The URL of its history, where it does not lie in the directory.")]


def check(directory: Directory, snapshots: Snapshots = None, history: History = None, as_json: AsJson = False) -> None:
    """Verify every checksum of a store's directory, and that its log, snapshots and history fit together.

    Example: fastfeat check data

    Changes nothing; the store may be in use. The exit code is 1 where something is wrong.
    """
    from fastfeat.inspection import check_directory

    from .output import print_json, print_table, steps

    with steps(as_json) as progress:
        report = check_directory(directory, snapshots=snapshots, history=history, progress=progress)
    if as_json:
        print_json(asdict(report))
    else:
        print_table(report.directory, ("part", "what was found"), found_rows(report))
    if report.problems:
        count = len(report.problems)
        typer.echo(f"fastfeat: {count} problem{'s' if count > 1 else ''} in {report.directory}", err=True)
        raise typer.Exit(1)
    if not as_json:
        print("everything matches its checksum, and the parts fit together")


def found_rows(report: CheckReport) -> Iterator[tuple[str, str]]:
    for generation, counts in sorted(report.snapshots.items(), reverse=True):
        yield f"snapshot {generation}", counts_text(counts)
    yield "history", counts_text(report.history)
    yield "log", counts_text(report.log)
    for problem in report.problems:
        yield "problem", problem


def counts_text(counts: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items()) or "nothing"


def backup(
    directory: Directory,
    to: Annotated[str, typer.Argument(help="An empty directory, or a URL such as s3://bucket/prefix.")],
    snapshots: Snapshots = None,
    history: History = None,
    as_json: AsJson = False,
) -> None:
    """Copy a store, which may be in use, as it stands now; every file is verified on both sides.

    Example: fastfeat backup data backups/monday
    """
    from fastfeat import inspection

    from .output import steps

    with steps(as_json) as progress:
        info = inspection.backup(directory, to, snapshots=snapshots, history=history, progress=progress)
    show(f"backed up {directory} to {to}", info, as_json)


def restore(
    backup: Annotated[str, typer.Argument(help="A directory or URL that `fastfeat backup` wrote.")],
    directory: Annotated[str, typer.Argument(help="The new directory: empty, or not there yet.")],
    snapshots: Snapshots = None,
    history: History = None,
    as_json: AsJson = False,
) -> None:
    """Make a store's directory from a backup, verified, for `fastfeat serve --directory` to go on with.

    Example: fastfeat restore backups/monday data
    """
    from fastfeat import inspection

    from .output import steps

    with steps(as_json) as progress:
        info = inspection.restore(backup, directory, snapshots=snapshots, history=history, progress=progress)
    show(f"restored {backup} to {directory}", info, as_json)


def show(what: str, info: BackupInfo, as_json: bool) -> None:
    from .output import print_json, size_text, time_text

    if as_json:
        print_json({**asdict(info), "files": len(info.files), "size": info.size})
        return
    taken = time_text(info.taken_us)
    print(f"{what}: {len(info.files)} files, {size_text(info.size)}, as of {taken} UTC, log up to {info.log_end:,}")
