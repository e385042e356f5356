"""`fastfeat get`, `replay` and `info`: what a running server answers, answered and holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import DEFAULT_URL, AsJson, Entities, Url

if TYPE_CHECKING:
    from datetime import datetime

    from fastfeat.receipts import Receipt
    from fastfeat.result import Result

WRITTEN = {
    "float32": "a number",
    "float64": "a number",
    "timestamp": "a moment such as 2013-07-04T15:00Z",
    "bool": "true or false",
}
INTEGERS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


def get(
    features: Annotated[list[str], typer.Argument(help="A feature service, or features as view:field.")],
    url: Url = DEFAULT_URL,
    entity: Entities = None,
    as_of: Annotated[
        str | None, typer.Option(help="Answer as of this moment, ISO 8601 with a zone: 2013-07-04T15:00Z.")
    ] = None,
    known_at: Annotated[str | None, typer.Option(help="Count only what was known by this moment.")] = None,
    receipt: Annotated[
        bool, typer.Option("--receipt", help="Print what `fastfeat replay` takes, on the last line.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Ask for features of entities, now or as of a past moment.

    Example: fastfeat get aircraft:built aircraft_delays:minutes_last_24h -e tailnum=N14228 --as-of 2013-01-01T10:15Z

    Request fields of on-demand features go beside the keys: -e user_id=7,amount=12.5,paid_at=2013-01-01T23:30Z.

    An entity that is not there is an answer (NOT_FOUND, EXPIRED, DELETED), not an error. With --json and --receipt the
    document is {"answers": [...], "receipt": {...}}.
    """
    import fastfeat

    if not entity:
        raise typer.BadParameter("name at least one entity", param_hint="--entity")
    moment, known = option_time(as_of, "--as-of"), option_time(known_at, "--known-at")
    with fastfeat.connect(url) as client:
        key_types = given_types(client.info())
        rows = [parse_entity(text, key_types) for text in entity]
        result = client.get_online_features(
            wanted_features(features), rows, as_of=moment, known_at=known, receipt=receipt
        )
    if receipt and result.receipt is None:
        raise fastfeat.StorageError(f"{url} gives no receipts: its store is in memory; serve one with --directory")
    show_result(result, rows, as_json, receipt)


def replay(
    receipt: Annotated[
        str, typer.Argument(help="A file with a receipt, or with what `get --json --receipt` printed; - for stdin.")
    ],
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Ask for an answer again by its receipt, as it was given then.

    Example: fastfeat replay receipt.json

    Rows that came later and definitions that changed since do not count. What was deleted since is DELETED.
    """
    import fastfeat

    asked = read_receipt(receipt)
    with fastfeat.connect(url) as client:
        result = client.replay(asked)
    names, columns = asked.entities.keys(), asked.entities.values()
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    show_result(result, rows, as_json, False)


def read_receipt(path: str) -> Receipt:
    """Raises DataError, or OSError: the file can't be read."""
    from fastfeat import DataError, Receipt

    text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} holds no JSON: {error}") from None
    return Receipt.from_dict(said["receipt"] if isinstance(said, dict) and "receipt" in said else said)


def wanted_features(words: list[str]) -> str | list[str]:
    """A service by its name, or a list of view:field."""
    return words[0] if len(words) == 1 and ":" not in words[0] else words


def option_time(text: str | None, option: str) -> datetime | None:
    from .output import parse_time

    if text is None:
        return None
    try:
        return parse_time(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def given_types(info: Mapping[str, Any]) -> dict[str, str]:
    """What comes with an entity -> its type: the join keys and request fields of all views of the server."""
    fields = [field for view in info.get("on_demand", {}).values() for field in view["request"]]
    keys = {key: str(kind) for view in info["views"].values() for key, kind in view["join_keys"].items()}
    return {field["name"]: str(field["dtype"]) for field in fields} | keys


def parse_entity(text: str, key_types: Mapping[str, str]) -> dict[str, object]:
    """Keys and request fields of one entity from "key=value,key=value", or a JSON object where values hold commas."""
    if text.startswith("{"):
        return parse_json_entity(text, key_types)
    row: dict[str, object] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{part!r} is not key=value", param_hint="--entity")
        if key not in key_types:
            known = ", ".join(sorted(key_types))
            raise typer.BadParameter(
                f"no view has the join key or request field {key!r}; there are {known}", param_hint="--entity"
            )
        row[key] = parse_value(key, value, key_types[key])
    return row


def parse_json_entity(text: str, key_types: Mapping[str, str]) -> dict[str, object]:
    try:
        row = dict(json.loads(text))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not JSON: {error}", param_hint="--entity") from None
    is_time = {key: key_types.get(key) == "timestamp" and isinstance(value, str) for key, value in row.items()}
    return {key: parse_value(key, value, "timestamp") if is_time[key] else value for key, value in row.items()}


def parse_value(key: str, value: str, kind: str) -> object:
    """A key's or request field's value of its text. Raises BadParameter: it is no such value."""
    from .output import parse_time

    try:
        if kind in INTEGERS:
            return int(value)
        if kind in ("float32", "float64"):
            return float(value)
        if kind == "timestamp":
            return parse_time(value)
        if kind == "bool":
            return {"true": True, "false": False}[value]
    except (KeyError, ValueError):
        raise typer.BadParameter(
            f"{key}={value!r} is not {WRITTEN.get(kind, 'an integer')}, and it is {kind}", param_hint="--entity"
        ) from None
    return value


def show_result(result: Result, rows: Sequence[Mapping[str, object]], as_json: bool, with_receipt: bool) -> None:
    from .output import print_json, print_table, time_text

    columns = result.to_dict()
    answers = [answer_of(result, columns, i, row) for i, row in enumerate(rows)]
    receipt = result.receipt if with_receipt else None
    if as_json:
        print_json(answers if receipt is None else {"answers": answers, "receipt": receipt.to_dict()})
        return
    for answer in answers:
        times = {view: found["event_time_us"] for view, found in answer["views"].items()}
        print_table(
            ", ".join(f"{key}={value}" for key, value in answer["entity"].items()),
            ("feature", "value", "status", "event time (UTC)"),
            (
                (name, value, answer["statuses"][name], time_text(time_us) if time_us else "-")
                for name, value in answer["values"].items()
                for time_us in [times[name.partition(":")[0]]]
            ),
        )
    if receipt is not None:
        print(receipt.to_json())


def answer_of(result: Result, columns: dict[str, list[Any]], at: int, row: Mapping[str, object]) -> dict[str, Any]:
    """The answer about one entity as plain values."""
    from fastfeat import Status

    return {
        "entity": row,
        "values": {name: columns[name][at] for name in result.names},
        "statuses": {name: Status(int(result.status(name)[at])).name for name in result.names},
        "views": {
            view: {"status": Status(int(codes[at])).name, "event_time_us": int(result.event_times[view][at])}
            for view, codes in result.statuses.items()
        },
    }


def info(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show what a running server holds.

    Views with their rows and entities, window and on-demand views, services, how much of the memory limit is used, and
    the state of its directory.

    Example: fastfeat info --url fastfeat://127.0.0.1:7077
    """
    import fastfeat

    from .output import print_json, print_table, size_text

    with fastfeat.connect(url) as client:
        found = client.info()
    if as_json:
        print_json(found)
        return
    print_table(
        "views",
        ("view", "join keys", "fields", "rows", "entities"),
        (
            (name, ", ".join(view["join_keys"]), len(view["fields"]), view["rows"], view["entities"])
            for name, view in found["views"].items()
        ),
    )
    if found.get("windows"):
        print_table(
            "window views",
            ("view", "source", "features"),
            ((name, view["source"], len(view["features"])) for name, view in found["windows"].items()),
        )
    if found.get("on_demand"):
        print_table(
            "on-demand views",
            ("view", "request fields", "features", "source's hash"),
            (
                (name, ", ".join(each["name"] for each in view["request"]), len(view["fields"]), view["hash"][:12])
                for name, view in found["on_demand"].items()
            ),
        )
    print_table("services", ("service", "features"), ((n, len(f)) for n, f in found["services"].items()))
    arena = found["arena"]
    share = arena["used"] / arena["capacity"]
    print(f"memory: {size_text(arena['used'])} used of {size_text(arena['capacity'])} allowed ({share:.1%})")
    if found.get("storage"):
        print_table("storage", ("what", "state"), storage_rows(found["storage"]))


def storage_rows(storage: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The state of the server's directory, for people."""
    from .output import size_text, time_text

    log, snapshot, history = storage["log"], storage["snapshot"], storage["history"]
    waiting = size_text(log["end"] - history["position"])
    unsynced = size_text(log["end"] - log["durable"])
    rows = [
        ("directory", storage["directory"]),
        ("writes", f"refused: {storage['read_only']}" if storage["read_only"] else f"taken, fsync {storage['fsync']}"),
        (
            "log",
            f"{size_text(log['end'] - log['start'])}, of which {unsynced} not synced",
        ),
        ("history", f"rows to sequence {history['sequence']:,}; {waiting} of log to come"),
        ("snapshot", f"{snapshot['generation']}, {time_text(snapshot['taken_us'])} UTC" if snapshot else "none yet"),
    ]
    return rows + [(f"failed: {name}", why) for name, why in storage["problems"].items()]
