"""`fastfeat snapshot` and `compact`: of a server's store, or of one that nobody has open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import DEFAULT_URL, AsJson, Url

if TYPE_CHECKING:
    from fastfeat import Store
    from fastfeat.client import Client

Directory = Annotated[str, typer.Argument(help="The directory of a store.", show_default=False)]
Owned = Annotated[
    str | None,
    typer.Argument(help="The directory of a store that no server has open; without it, the server at --url is asked."),
]


def snapshot(directory: Owned = None, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Write what a store has in memory to its directory, so that the next start is quick.

    Example: fastfeat snapshot --url fastfeat://127.0.0.1:7077

    A server does so by itself every snapshot_seconds and when it stops.
    """
    from fastfeat_server.requests import snapshot_map

    made = ask(
        directory,
        url,
        lambda client: client.snapshot(),
        lambda store: snapshot_map(store.snapshot()),
        "writing a snapshot",
        as_json,
    )
    show(made, "snapshot", as_json)


def compact(directory: Owned = None, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Merge the files of a store's history, and erase what was deleted from it.

    Example: fastfeat compact data

    Rows of deleted entities are out of every answer at once; after this their bytes are gone from the history too.
    """
    done = ask(
        directory,
        url,
        lambda client: client.compact(),
        lambda store: asdict(store.compact()),
        "compacting the history",
        as_json,
    )
    show(done, "compacted", as_json)


def ask(
    directory: str | None,
    url: str,
    of_server: Callable[[Client], dict[str, Any]],
    of_store: Callable[[Store], dict[str, Any]],
    what: str,
    quiet: bool,
) -> dict[str, Any]:
    """What the server says, or the store in the directory, which is open meanwhile."""
    import fastfeat

    from .output import waiting

    with waiting(what, quiet):
        if directory is None:
            with fastfeat.connect(url, timeout=None) as client:
                return of_server(client)
        with fastfeat.Store.open(existing(directory)) as store:
            return of_store(store)


def existing(directory: str) -> str:
    """The directory of a store; to open another one would begin a new store there."""
    from pathlib import Path

    from fastfeat.errors import StorageError

    if not Path(directory, "LOCK").is_file():
        raise StorageError(f"{directory} is no directory of a store; `fastfeat serve --directory` begins one")
    return directory


def show(found: dict[str, Any], title: str, as_json: bool) -> None:
    from .output import print_json, print_table, time_text

    if as_json:
        print_json(found)
        return
    views = found.get("views", {})
    plain = {name: time_text(value) if name.endswith("_us") else value for name, value in found.items()}
    print_table(title, ("what", "value"), ((name, value) for name, value in plain.items() if name != "views"))
    if views:
        columns = sorted({column for view in views.values() for column in view}, reverse=True)
        print_table("views", ("view", *columns), ((name, *map(view.get, columns)) for name, view in views.items()))
