"""`fastfeat serve`: a server of your definitions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DataError
from .options import AsJson

if TYPE_CHECKING:
    from fastfeat_server import Config

    from fastfeat import Store


def serve(
    definitions: Annotated[
        str | None,
        typer.Argument(help="A Python file of definitions, or a module's dotted name; a directory remembers its own."),
    ] = None,
    directory: Annotated[
        str | None, typer.Option(help="Keep everything here, for the next start too; without it, in memory.")
    ] = None,
    load: Annotated[
        list[str] | None, typer.Option("--load", help="VIEW=PATH: rows to load before serving; may be repeated.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="A loopback address; '' for no TCP.")] = None,
    port: Annotated[int | None, typer.Option(help="0 takes a free one.")] = None,
    unix_socket: Annotated[str | None, typer.Option(help="The path of a unix socket to listen on too.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that answer reads, beside one that writes; 0: one does it all.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="With workers: the name of the shared memory, for fastfeat+shm://NAME too; or a path."),
    ] = None,
    group: Annotated[str | None, typer.Option(help="With workers: the group whose members may attach to it.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of any other setting, such as drain_seconds=5.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file with a table [server].")] = None,
    capacity_mib: Annotated[
        int | None, typer.Option(help="The memory limit for rows, MiB; without it half of this machine's.", min=1)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve the views and services of a definitions file, from memory or from a directory.

    Example: fastfeat serve features.py --directory data --load profile=profiles.parquet --port 7077

    With a directory a write is in its log before it is answered (--set fsync=always|interval|off); a later start has
    everything again and needs no definitions.

    With --workers N, one process writes and N answer reads from its memory, on the same port; any that dies is
    replaced, and reads go on meanwhile. Programs on this machine read the same memory at fastfeat+shm://NAME.

    A setting comes from its flag, else FASTFEAT_<NAME> in the environment, else the TOML file, else its default.
    Prints one line once it accepts connections (with --json: {"url": ..., "urls": [...]}). SIGTERM or Ctrl-C stops it
    after the answers under way.
    """
    from fastfeat_server import Config, supervise
    from fastfeat_server import serve as serve_store

    flags: dict[str, Any] = {"directory": directory, "host": host, "port": port, "unix_socket": unix_socket}
    flags |= {"workers": workers, "name": name, "group": group}
    flags |= dict(split_pair(text, "--set") for text in setting or [])
    try:
        settings = Config.read(flags, file=config)
    except DataError as error:
        raise typer.BadParameter(str(error), param_hint="the settings") from None
    if definitions is None and not settings.directory:
        raise typer.BadParameter("give definitions, or a directory that has some", param_hint="DEFINITIONS")
    rows = [split_pair(text, "--load") for text in load or []]
    if settings.workers:
        command = writer_command(settings, definitions, rows, capacity_mib, as_json)
        raise typer.Exit(supervise(settings, command, ready=lambda urls: announce(urls, as_json)))
    with open_store(settings, capacity_mib, quiet=as_json) as store:
        fill_store(store, definitions, rows, as_json)
        serve_store(store, settings, ready=lambda server: announce(server.addresses, as_json))


def serve_writer(
    lifeline: Annotated[int, typer.Argument()],
    definitions: Annotated[str | None, typer.Option()] = None,
    load: Annotated[list[str] | None, typer.Option("--load")] = None,
    capacity_mib: Annotated[int | None, typer.Option()] = None,
    as_json: AsJson = False,
) -> None:
    """The writer process of `fastfeat serve --workers`, which starts it; its settings stand in its environment."""
    from fastfeat_server import Config
    from fastfeat_server.writer import serve_writer

    settings = Config.read()
    rows = [split_pair(text, "--load") for text in load or []]
    with open_store(settings, capacity_mib, quiet=True) as store:
        fill_store(store, definitions, rows, as_json)
        serve_writer(store, settings, lifeline)


def writer_command(
    settings: Config, definitions: str | None, rows: list[tuple[str, str]], capacity_mib: int | None, as_json: bool
) -> Callable[[int, bool], list[str]]:
    """The writer's command line, of the number of its lifeline and of whether none of this service was ready before:
    one that comes back to its directory has the rows already."""
    options = [] if definitions is None else ["--definitions", definitions]
    options += [] if capacity_mib is None else ["--capacity-mib", str(capacity_mib)]
    options += ["--json"] if as_json else []
    loads = [word for view, path in rows for word in ("--load", f"{view}={path}")]

    def command(lifeline: int, is_first: bool) -> list[str]:
        words = [sys.executable, "-m", "fastfeat.cli", "serve-writer", str(lifeline), *options]
        return words + loads if is_first or not settings.directory else words

    return command


def fill_store(store: Store, definitions: str | None, rows: list[tuple[str, str]], as_json: bool) -> None:
    from .definitions import load_definitions

    if definitions is not None:
        store.apply(load_definitions(definitions))
    for view, path in rows:
        load_rows(store, view, path, as_json)


def split_pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=option)
    return name, value


def open_store(settings: Config, capacity_mib: int | None, *, quiet: bool) -> Store:
    """The directory's store, or an empty one in memory."""
    from fastfeat import Store

    from .output import waiting

    capacity_bytes = None if capacity_mib is None else capacity_mib << 20
    shared: dict[str, Any] = {}
    if settings.workers:
        shared = {"shared": settings.name, "shared_group": settings.group or None}
    if not settings.directory:
        return Store(capacity_bytes, **shared)
    with waiting(f"opening {settings.directory}", quiet):
        return Store.open(
            settings.directory,
            capacity_bytes=capacity_bytes,
            fsync=settings.fsync,
            fsync_interval=settings.fsync_interval,
            snapshot_seconds=settings.snapshot_seconds,
            snapshots=settings.snapshots or None,
            history=settings.history or None,
            **shared,
        )


def load_rows(store: Store, view: str, path: str, as_json: bool) -> None:
    """Load a file; rows that do not fit are told on stderr and do not keep the server from starting."""
    from .output import shows_progress

    report = store.load(view, path, progress=shows_progress(as_json))
    if not as_json:
        print(f"loaded {report.accepted:,} rows into {view} from {path}")
    if report.rejected:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in report.reasons.items())
        typer.echo(f"fastfeat: {view}: {report.rejected:,} rows of {path} rejected ({reasons})", err=True)


def announce(urls: list[str], as_json: bool) -> None:
    import json

    print(json.dumps({"url": urls[0], "urls": urls}) if as_json else f"serving on {' and '.join(urls)}", flush=True)
