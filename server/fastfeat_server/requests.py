"""What each method does: the one table from a method's name to its answer.

A GET of values that memory holds does not come here: native code answers it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from fastfeat import __version__
from fastfeat.computed import ComputedPlan
from fastfeat.errors import BeforeHistory, DataError, NotYetVisible, RemoteProtocolError
from fastfeat.protocol import FRAME_SIZE_MIN, VERSION, Format, answer_frame
from fastfeat.receipts import Receipt
from fastfeat.request_fields import plain_values, values_of_wire
from fastfeat.result import Result

from .loading import handle_load
from .pause import Pause

if TYPE_CHECKING:
    from .connection import Connection


WAIT_SECONDS_MAX: Final = 60.0
SIGNED: Final = np.dtype("<i8")
UNSIGNED: Final = np.dtype("<u8")
LOOK_SECONDS: Final = 0.001  # between two looks at what is visible; event loops count in milliseconds


class Frame(NamedTuple):
    """A whole reply, made in a thread."""

    data: bytes


class AskWriter(NamedTuple):
    """What a thread found that memory cannot answer: the GET is the writer's to answer."""

    plan: Any
    asked: list[Any]


def handle(connection: Connection, request_id: int, method: str, params: object) -> None:
    """Answers a message, now or later. What it raises becomes the error reply."""
    if method not in METHODS:
        raise RemoteProtocolError(f"method {method!r:.40} is unknown; known are {', '.join(METHODS)}")
    METHODS[method](connection, request_id, params)


def hello(connection: Connection, request_id: int, params: object) -> None:
    if connection.session.is_greeted:
        raise RemoteProtocolError("HELLO: said already on this connection")
    said = expect_map(params, "HELLO")
    if said.get("version") != VERSION:
        raise RemoteProtocolError(f"HELLO: version {said.get('version')!r:.20}; this server speaks version {VERSION}")
    frame_size_max = said.get("frame_size_max", connection.server.config.frame_size_max)
    if not is_int(frame_size_max) or frame_size_max < FRAME_SIZE_MIN:
        raise RemoteProtocolError(f"HELLO: frame_size_max must be an integer of at least {FRAME_SIZE_MIN}")
    flags, positions = said.get("flags", False), said.get("positions", False)
    if not isinstance(flags, bool) or not isinstance(positions, bool):
        raise RemoteProtocolError("HELLO: flags and positions are true or false")
    connection.greet(frame_size_max, flags=flags, positions=positions)
    connection.session.reply(
        request_id,
        {
            "version": VERSION,
            "server": f"fastfeat {__version__}",
            "frame_size_max": connection.server.config.frame_size_max,
            "entities_max": connection.server.config.entities_max,
            "compression": "none",
        },
    )


def prepare(connection: Connection, request_id: int, params: object) -> None:
    wanted = expect_map(params, "PREPARE")
    if len(wanted) != 1 or not wanted.keys() <= {"features", "service"}:
        raise RemoteProtocolError("PREPARE: give {'features': ['view:field', ...]} or {'service': name}")
    if connection.session.plans_count >= connection.server.config.plans_max:
        limit = connection.server.config.plans_max
        raise DataError(f"{limit} plans on this connection, which is the limit; reuse them or raise plans_max")
    plan = connection.server.store.plan(wanted.get("service", wanted.get("features")))
    # Only where there are any: a client of before then knows of none.
    fields = plan.request_fields if isinstance(plan, ComputedPlan) else ()
    request = {"request": [[field.name, str(field.dtype)] for field in fields]} if fields else {}
    connection.session.reply(
        request_id,
        {
            "plan": connection.session.add_plan(plan),
            "keys": list(zip(plan.key_names, plan.key_types, strict=True)),
            "features": [[name, str(dtype)] for name, dtype in zip(plan.features, plan.dtypes, strict=True)],
            "views": plan.views,
            "view_of": plan.view_of,
            "matrix_columns": plan.matrix_columns,
            **request,
        },
    )


def get(connection: Connection, request_id: int, params: object) -> None:
    """A GET that native code leaves to a thread: in format 4, of computed features, or of rows that memory no longer
    has and the history may. Functions that have proved quick need none, see pace.py. Its number is checked, and unless
    features are computed its format and limits too."""
    asked = expect_list(params, "GET")
    session, server = connection.session, connection.server
    plan, limit = session.plan(asked[0]), session.reply_size_max
    wanted, reply_type = get_format(asked), session.reply_type
    is_computed = isinstance(plan, ComputedPlan)
    if server.writer_path and wanted is not Format.ARROW and not is_computed:
        connection.to_writer().get(request_id, plan, asked)
        return

    def read() -> tuple[dict[str, Any], int]:
        entities = entity_columns(plan, asked[1])
        return entities, check_entities(entities, "GET", server.config.entities_max)

    def make(of: Any, entities: dict[str, Any]) -> object:
        if wanted is Format.ARROW:
            return arrow_answer(of, entities, asked, limit)
        if is_computed:
            return computed_answer(of, entities, asked, wanted, limit)
        return Frame(answer_frame(of, request_id, asked, limit, reply_type))

    def answer() -> object:
        entities, count = read()
        try:
            if is_computed:
                return server.pace.in_thread(plan, count, lambda: make(plan, entities))
            return make(plan, entities)
        except BeforeHistory as error:
            if server.writer_path:
                return AskWriter(plan, asked)
            if not server.is_durable:
                raise
            return make(server.store.past(plan, entities, error), entities)

    if is_computed and wanted is not Format.ARROW and server.pace.is_quick(plan, wire_count(asked[1])):
        entities, _ = read()
        try:
            session.reply(request_id, server.pace.at_once(plan, lambda: make(plan, entities)))
            return
        except BeforeHistory:
            pass  # files are for threads
    connection.in_thread(request_id, server.executor, answer)


def get_format(asked: list[Any]) -> Format:
    """Raises RemoteProtocolError: there is none of that number."""
    number = asked[2] if len(asked) > 2 and asked[2] is not None else Format.ROWS
    try:
        return Format(number)
    except ValueError:
        raise RemoteProtocolError(f"GET has format {number!r:.20}; formats are 0 to {max(Format):d}") from None


def arrow_answer(plan: Any, entities: dict[str, Any], asked: list[Any], limit: int) -> list[bytes]:
    as_of, known_at = [*asked[3:], None, None][:2]
    statuses, event_times, columns = plan.columns(entities, as_of, known_at, limit)
    result = Result(plan.features, plan.dtypes, plan.views, plan.view_of, statuses, event_times, columns)
    return [statuses.tobytes(), event_times.tobytes(), arrow_bytes(result)]


def computed_answer(
    plan: ComputedPlan, entities: dict[str, Any], asked: list[Any], wanted: Format, limit: int
) -> list[Any]:
    """The result of a GET of computed features in any format but Arrow."""
    if wanted in (Format.FLOAT64, Format.FLOAT32):
        plan.check_matrix()
    as_of, known_at = [*asked[3:], None, None][:2]
    statuses, event_times, columns = plan.columns(entities, as_of, known_at, limit)
    stamps, count = [statuses.tobytes(), event_times.tobytes()], statuses.shape[1]
    if wanted is Format.ROWS:
        values = [plain_values(dtype, column) for dtype, column in zip(plan.dtypes, columns, strict=True)]
        return [*stamps, list(map(list, zip(*values, strict=True)))]
    if wanted is Format.COLUMNS:
        return [*stamps, count, column_parts(columns)]
    matrix = plan.matrix_of(columns, "float64" if wanted is Format.FLOAT64 else "float32")
    return [*stamps, count, matrix.shape[1], matrix.tobytes()]


def wire_count(given: object) -> int:
    """How many entities there are, before anything is read: reading many is not for the event loop."""
    parts = given if isinstance(given, list) else []
    counts = [
        len(part) // 8 if isinstance(part, bytes) else len(part) for part in parts if isinstance(part, bytes | list)
    ]
    return max(counts, default=0)


def entity_columns(plan: Any, given: object) -> dict[str, Any]:
    """Keys and request fields, as a plan takes entities."""
    parts = expect_list(given, "GET keys")
    fields = plan.request_fields if isinstance(plan, ComputedPlan) else ()
    keys_count = len(plan.key_names)
    if len(parts) != keys_count + len(fields):
        more = f" and {len(fields)} request fields" if fields else ""
        raise DataError(f"GET has {len(parts)} key columns, the plan has {keys_count}{more}")
    out = {}
    for name, kind, part in zip(plan.key_names, plan.key_types, parts[:keys_count], strict=True):
        if isinstance(part, bytes):
            if kind == "string" or len(part) % 8:
                raise DataError(f"join key {name!r}: a bin of {len(part)} B is no column of {kind}")
            part = np.frombuffer(part, UNSIGNED if kind == "uint64" else SIGNED)
        out[name] = part
    for field, part in zip(fields, parts[keys_count:], strict=True):
        out[field.name] = values_of_wire(field.dtype, part, f"request field {field.name!r}")
    return out


def arrow_bytes(result: Result) -> bytes:
    import pyarrow as pa

    table = result.to_arrow()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def answer(connection: Connection, request_id: int, params: object) -> None:
    """[features, keys, as_of, known_at]: an answer with its receipt, by a thread, as it may read the history."""
    asked = expect_list(params, "ANSWER")
    if not 2 <= len(asked) <= 4:
        raise RemoteProtocolError(f"ANSWER takes 2 to 4 params (features, keys, as_of, known_at), not {len(asked)}")
    features, keys, as_of, known_at = [*asked, None, None][:4]
    check_entities(keys, "ANSWER", connection.server.config.entities_max)
    server, limit = connection.server, connection.session.reply_size_max
    connection.in_thread(
        request_id,
        server.executor,
        lambda: answer_map(server.store.answer(features, keys, as_of, known_at, size_max=limit)),
    )


def replay(connection: Connection, request_id: int, params: object) -> None:
    """[receipt]: its answer again, by a thread, as it reads the history."""
    asked = expect_list(params, "REPLAY")
    if len(asked) != 1:
        raise RemoteProtocolError(f"REPLAY takes 1 param (a receipt), not {len(asked)}")
    receipt = Receipt.from_dict(asked[0])
    check_entities(receipt.entities, "REPLAY", connection.server.config.entities_max)
    server, limit = connection.server, connection.session.reply_size_max
    connection.in_thread(request_id, server.executor, lambda: answer_map(server.store.replay(receipt, size_max=limit)))


def answer_map(result: Result) -> dict[str, Any]:
    """A result that says itself what its columns are."""
    statuses, event_times = (
        b"".join(values.tobytes() for values in of_views.values()) for of_views in (result.statuses, result.event_times)
    )
    return {
        "receipt": None if result.receipt is None else result.receipt.to_dict(),
        "features": [[name, str(dtype)] for name, dtype in zip(result.names, result.dtypes, strict=True)],
        "views": result.views,
        "view_of": result.view_of,
        "result": [statuses, event_times, len(result), column_parts(result.columns)],
    }


def column_parts(columns: Sequence[Any]) -> list[list[bytes]]:
    """Columns as format 1 has them."""
    return [[part.tobytes() for part in column if part is not None] for column in columns]


def check_entities(keys: object, method: str, limit: int) -> int:
    """How many there are. Raises DataError: more of them than the server takes at once, or no map of columns."""
    if not isinstance(keys, dict) or not all(isinstance(column, (list, np.ndarray)) for column in keys.values()):
        raise DataError(f"{method}: keys are a map from join keys to arrays of values, not {type(keys).__name__}")
    entities = max(map(len, keys.values()), default=0)
    if entities > limit:
        raise DataError(f"{entities} entities in one {method}, at most {limit}; ask for fewer")
    return entities


def push(connection: Connection, request_id: int, params: object) -> None:
    """[view, rows]: rows as maps, or an Arrow stream as bin; the created time of the batch."""
    view, rows = expect_view(params, "PUSH")
    if type(rows) is not bytes:
        expect_list(rows, "PUSH rows")
    server = connection.server
    if server.may_write_at_once(rows):
        connection.session.reply(request_id, connection.written(server.store.push(view, rows)))
    else:
        server.writes.put(connection, request_id, False, view, rows)


def delete(connection: Connection, request_id: int, params: object) -> None:
    """[view, keys as maps]"""
    view, keys = expect_view(params, "DELETE")
    expect_list(keys, "DELETE keys")
    server = connection.server
    if server.may_write_at_once(keys):
        connection.session.reply(request_id, connection.written(server.store.delete(view, keys)))
    else:
        server.writes.put(connection, request_id, True, view, keys)


def snapshot(connection: Connection, request_id: int, params: object) -> None:
    """What is in memory, written to the disk by a thread; what was written, as a map."""
    server = connection.server
    connection.in_thread(request_id, server.maintenance, lambda: snapshot_map(server.store.snapshot(is_gentle=True)))


def snapshot_map(made: Any) -> dict[str, Any]:
    """Of a SnapshotInfo; not the seed of the hash, which is nobody's but the store's."""
    return {name: getattr(made, name) for name in ("generation", "sequence", "log_end", "taken_us", "views")}


def compact(connection: Connection, request_id: int, params: object) -> None:
    """The history's files merged, and rid of deleted rows, by a thread; what was done, as a map."""
    server = connection.server
    connection.in_thread(request_id, server.maintenance, lambda: asdict(server.store.compact()))


def info(connection: Connection, request_id: int, params: object) -> None:
    connection.session.reply(request_id, {**connection.server.store.info(), "server": connection.server.info()})


def ping(connection: Connection, request_id: int, params: object) -> None:
    connection.session.reply(request_id, None)


def wait(connection: Connection, request_id: int, params: object) -> None:
    """[position, seconds]: nil once writes up to the position are visible here; later requests wait meanwhile."""
    match params:
        case [int(position), int() | float() as seconds] if is_int(position) and 0 <= seconds <= WAIT_SECONDS_MAX:
            pass
        case _:
            raise RemoteProtocolError(f"WAIT takes a position and seconds, 0 to {WAIT_SECONDS_MAX:.0f}")
    server = connection.server
    deadline = server.loop.time() + seconds

    def look() -> None:
        if connection.transport.is_closing():
            return
        visible = server.position()
        if visible < position and server.loop.time() < deadline and not server.is_stopping:
            server.loop.call_later(LOOK_SECONDS, look)
            return
        connection.pending -= 1
        if visible >= position:
            connection.reply(request_id, None)
        else:
            text = f"position {position} is not visible here after {seconds} s, {visible} is; wait again or go without"
            connection.fail(request_id, NotYetVisible(text))
        connection.resume(Pause.WAITING)

    if server.position() >= position:
        connection.session.reply(request_id, None)
        return
    connection.pending += 1
    connection.pause(Pause.WAITING)
    server.loop.call_later(LOOK_SECONDS, look)


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def expect_map(params: object, method: str) -> Mapping[str, Any]:
    if not isinstance(params, dict):
        raise RemoteProtocolError(f"{method}: params must be a map")
    return params


def expect_list(params: object, what: str) -> list[Any]:
    if not isinstance(params, list):
        raise RemoteProtocolError(f"{what} must be an array")
    return params


def expect_view(params: object, method: str) -> tuple[str, Any]:
    if not isinstance(params, list) or len(params) != 2 or not isinstance(params[0], str):
        raise RemoteProtocolError(f"{method}: params must be [view, rows]")
    return params[0], params[1]


# What a worker passes on to the writer process, undecoded.
WRITERS: Final = frozenset({"PUSH", "DELETE", "LOAD", "ANSWER", "REPLAY", "SNAPSHOT", "COMPACT"})

METHODS: Final[dict[str, Callable[[Connection, int, object], None]]] = {
    "HELLO": hello,
    "PREPARE": prepare,
    "GET": get,
    "ANSWER": answer,
    "REPLAY": replay,
    "PUSH": push,
    "DELETE": delete,
    "LOAD": handle_load,
    "SNAPSHOT": snapshot,
    "COMPACT": compact,
    "INFO": info,
    "PING": ping,
    "WAIT": wait,
}
