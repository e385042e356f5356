"""`fastfeat train`: labels in, a training set out, from a store's directory or from files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from .options import AsJson
from .read import wanted_features
from .storage import existing

if TYPE_CHECKING:
    from fastfeat import Store


class Known(StrEnum):
    """What of the store counts for a label."""

    AS_SERVED = "as_served"
    AS_CORRECTED = "as_corrected"


def train(
    labels: Annotated[str, typer.Argument(help="A .parquet or .arrow file of labels, or a directory of them.")],
    features: Annotated[list[str], typer.Argument(help="A feature service, or features as view:field.")],
    output: Annotated[str, typer.Option("--output", "-o", help="The Parquet file to write.")],
    store: Annotated[
        str | None, typer.Option(help="The directory of a store; it is only read, so a server may have it open.")
    ] = None,
    definitions: Annotated[
        str | None, typer.Option(help="Instead of a store: a Python file or module that defines the features,")
    ] = None,
    rows: Annotated[
        list[str] | None, typer.Option(help="and files of rows, as VIEW=PATH; repeat for more views.")
    ] = None,
    known: Annotated[
        Known, typer.Option(help="Count only rows created by the label's time, or all, later corrections too.")
    ] = Known.AS_SERVED,
    event_time: Annotated[str, typer.Option(help="The column with the labels' times.")] = "event_timestamp",
    memory_mb: Annotated[int, typer.Option(help="What it may take beside the store, about, in MiB.", min=1)] = 1024,
    as_json: AsJson = False,
) -> None:
    """Join to each label the feature values as they stood at its time, and save them with what they are of.

    Example: fastfeat train clicks.parquet scoring --store data -o training.parquet

    The file holds the labels in their order and a column per feature. Its metadata names the definitions, their hash
    and the position of the store, so that the set can be traced.
    """
    from dataclasses import asdict

    from .output import print_json, print_table, shows_progress

    if (store is None) == (definitions is None) or (rows and store is not None):
        raise typer.BadParameter("give --store DIR, or --definitions FILE with --rows VIEW=PATH", param_hint="--store")
    with opened(store, definitions, rows or []) as source:
        origin = source.create_saved_dataset(
            output,
            labels,
            wanted_features(features),
            known=known.value,
            event_time=event_time,
            progress=shows_progress(as_json),
            memory_bytes=memory_mb << 20,
        )
    said = {"path": output, **asdict(origin), "features": list(origin.features)}
    if as_json:
        print_json(said)
        return
    shown = ("path", "rows", "known", "definitions_sha256", "version", "position")
    print_table(
        "training set", ("what", "value"), [*((name, said[name]) for name in shown), ("features", len(origin.features))]
    )


@contextmanager
def opened(directory: str | None, definitions: str | None, rows: list[str]) -> Iterator[Store]:
    """The store to read: of a directory, or one in memory with these files in it."""
    import fastfeat

    from .definitions import load_definitions

    if directory is not None:
        with fastfeat.Store.open(existing(directory), read_only=True) as store:
            yield store
        return
    assert definitions is not None
    with fastfeat.Store() as store:
        store.apply(load_definitions(definitions))
        for each in rows:
            view, separator, path = each.partition("=")
            if not separator:
                raise typer.BadParameter(f"{each!r} is not VIEW=PATH", param_hint="--rows")
            report = store.load(view, path)
            if report.rejected:
                raise fastfeat.DataError(f"{path}: {report}; mend its rows, or load them where they may be left out")
        yield store
