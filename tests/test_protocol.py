"""docs/PROTOCOL.md held to the code, and both sans-IO halves of a connection against hostile bytes."""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfeat._core.codec import pack, unpack
from fastfeat.dtypes import DType
from fastfeat.errors import CODE_OF, DataError, RemoteProtocolError, UnknownPlan
from fastfeat.protocol import (
    ClientSession,
    Format,
    FrameSplitter,
    Inbox,
    PreparedPlan,
    ServerSession,
    answer_of,
    columns_of,
    join_columns,
    matrix_of,
    reply_of,
)

from .table_store import EVERYTHING, NOW_US, NUMBERS, TableStore, place, user

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/PROTOCOL.md"
FRAME_SIZE_MAX = 1 << 20
ENTITIES_MAX = 100


def frame(message: Any) -> bytes:
    payload = msgpack.packb(message)
    return struct.pack(">I", len(payload)) + bytes(payload)


def payloads(data: bytes | memoryview | None) -> list[Any]:
    return [msgpack.unpackb(payload) for payload in FrameSplitter().feed(data or b"")]


def ints(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


class Half:
    """A ServerSession whose handler answers HELLO, echoes ECHO and notes everything."""

    def __init__(self, greeted: bool = True, store: TableStore | None = None) -> None:
        self.messages: list[tuple[int, str, object]] = []
        self.session = ServerSession(self.handle, FRAME_SIZE_MAX, ENTITIES_MAX)
        self.store = store or filled_store()
        if greeted:
            assert payloads(self.session.receive(frame([0, 0, "HELLO", {"version": 1}]))) == [[1, 0, None, "hello"]]
            self.session.add_plan(self.store.plan(["user:x"]))
            self.session.add_plan(self.store.plan(EVERYTHING))

    def handle(self, request_id: int, method: str, params: object) -> None:
        self.messages.append((request_id, method, params))
        if method == "HELLO":
            self.session.greet(FRAME_SIZE_MAX)
            self.session.reply(request_id, "hello")
        elif method == "ECHO":
            self.session.reply(request_id, params)
        elif method == "PAUSE":
            self.session.pause()
        elif method == "RAISE":
            raise KeyError("a bug of ours")


STORE: list[TableStore] = []


def filled_store() -> TableStore:
    if not STORE:
        store = TableStore()
        store.push("user", [user(i, x=1.5 if i == 7 else i) for i in range(8)])
        store.push("place", place("Paris", (1 << 64) - 1))
        STORE.append(store)
    return STORE[0]


@pytest.fixture
def half() -> Half:
    return Half()


# The document --------------------------------------------------------------------------------------------------------


def block(mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


def test_golden_bytes_of_the_document() -> None:
    half = Half(greeted=False)
    out = b""
    for line in block("golden").splitlines():
        data = bytes.fromhex(line[1:])
        if line.startswith(">"):
            assert out == b"" or unpack(out[4:]) == [1, 1, None, "hello"]
            out = bytes(half.session.receive(data) or b"")
            if half.session.is_greeted and not half.session.plans_count:
                half.session.add_plan(half.store.plan(["user:x"]))
        else:
            assert out == data
            out = b""


def test_the_documents_client_is_at_most_fifty_lines() -> None:
    lines = [line for line in block("client").splitlines() if line.strip()]
    assert len(lines) <= 50


def test_the_document_lists_every_error_code_and_no_other() -> None:
    listed = re.findall(r"^\| (\d+) \| (\w+) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert {int(code): name for code, name in listed} == {code: cls.__name__ for cls, code in CODE_OF.items()}


ANSWER = {
    "receipt": None,
    "features": [["user:x", "float64"], ["user:name", "string"]],
    "views": ["user"],
    "view_of": [0, 0],
    "result": [b"\0", bytes(8), 1, [[b"\1", bytes(8)], [b"\1", b"ab", b"\0\0\0\0\2\0\0\0"]]],
}


def test_an_answer_says_what_its_columns_are() -> None:
    answer, (statuses, _, columns) = answer_of(ANSWER)
    assert (answer.features, answer.view_of) == (("user:x", "user:name"), (0, 0))
    assert statuses.tolist() == [[0]]
    assert columns[1][1].tobytes() == b"ab"


@pytest.mark.parametrize("nothing", [None, [], 7, {}])
def test_what_is_no_answer_breaks_the_protocol(nothing: object) -> None:
    with pytest.raises(RemoteProtocolError):
        answer_of(nothing)


@pytest.mark.parametrize(
    "change",
    [
        {"features": None},
        {"features": []},
        {"features": [["user:x"]]},
        {"features": [["user:x", "float63"], ["user:name", "string"]]},
        {"features": [["user:x", "float64"]]},
        {"views": 1},
        {"views": []},
        {"view_of": [0]},
        {"view_of": [0, 1]},
        {"view_of": [0, []]},
        {"result": None},
        {"result": [b"", b"", 1, []]},
        {"result": [b"\0", bytes(8), "1", []]},
        {"result": [b"\0", bytes(8), 1, [[b"\1", bytes(7)], [b"\1", b"", bytes(8)]]]},
    ],
)
def test_an_answer_of_another_shape_breaks_the_protocol(change: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        answer_of(ANSWER | change)


# The server's half ---------------------------------------------------------------------------------------------------

STREAM = b"".join(
    [
        frame([0, 1, "GET", [0, [ints(7, 99)], 2]]),
        frame([0, 2, "ECHO", ["x" * 300]]),
        frame([0, 3, "GET", [1, [[3], ["Paris"], [(1 << 64) - 1]], 0]]),
        frame([0, 4, "GET", [5, [[3]]]]),
        frame([0, 5, "GET", [0, [["not an int"]], 2]]),
        frame([0, 6, "RAISE", []]),
        frame([0, 1 << 63, "GET", [0, [[7]], 3, NOW_US, NOW_US + 100]]),
    ]
)


def expected_replies() -> list[Any]:
    return payloads(Half().session.receive(STREAM))


def test_every_request_of_a_stream_gets_its_reply_in_order(half: Half) -> None:
    replies = payloads(half.session.receive(STREAM))
    assert [reply[1] for reply in replies] == [1, 2, 3, 4, 5, 6, 1 << 63]
    assert [reply[2] and reply[2][0] for reply in replies] == [None, None, None, 42, 20, 1, None]
    assert replies[0][3][:1] + replies[0][3][2:4] == [b"\x00\x02", 2, 1]
    assert np.frombuffer(replies[0][3][4]).tolist()[0] == 1.5
    assert replies[2][3][2] == [[3.0, None, 3, "user 3", [], [1.0, 2.0, 3.0], True, NOW_US]]
    assert "internal error: KeyError" in replies[5][2][1]
    assert np.frombuffer(replies[6][3][4], "<f4").tolist() == [1.5]
    assert half.session.gets == 3


def test_a_stream_byte_by_byte_gives_the_same_replies(half: Half) -> None:
    out = [half.session.receive(bytes([byte])) for byte in STREAM]
    assert payloads(b"".join(bytes(part) for part in out if part)) == expected_replies()
    assert half.session.held_size == 0


@given(st.lists(st.integers(0, len(STREAM)), max_size=6), st.binary(max_size=3))
def test_a_stream_in_any_pieces_and_with_a_tail_gives_the_same_replies(cuts: list[int], tail: bytes) -> None:
    half = Half()
    edges = [0, *sorted(cuts), len(STREAM)]
    out = [half.session.receive(STREAM[start:stop]) for start, stop in pairwise(edges)]
    out.append(half.session.receive(tail))
    assert payloads(b"".join(bytes(part) for part in out if part)) == expected_replies()
    assert half.session.held_size == len(tail)


def test_nothing_is_handled_while_paused_and_everything_after(half: Half) -> None:
    assert half.session.receive(frame([0, 1, "PAUSE", []]) + STREAM) is None
    assert half.session.receive(frame([0, 9, "ECHO", 1])) is None
    assert payloads(half.session.resume()) == [*expected_replies(), [1, 9, None, 1]]


def test_parsing_stops_when_unsent_replies_pile_up(half: Half) -> None:
    half.session.add_plan(half.store.plan(["user:x"]))
    big = frame([0, 1, "ECHO", "x" * 300_000])
    replies = payloads(half.session.receive(big * 9))
    assert half.session.has_more
    assert 4 <= len(replies) < 9
    while half.session.has_more:
        replies += payloads(half.session.resume())
    assert len(replies) == 9


def test_large_replies_leave_without_a_copy_and_keep_their_bytes(half: Half) -> None:
    first = half.session.receive(frame([0, 1, "ECHO", "a" * 100_000]))
    second = half.session.receive(frame([0, 2, "ECHO", "b" * 100_000]))
    assert isinstance(first, memoryview)
    assert payloads(first) == [[1, 1, None, "a" * 100_000]]
    assert payloads(second) == [[1, 2, None, "b" * 100_000]]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (struct.pack(">I", 1) + b"\xc1", "another type"),
        (struct.pack(">I", FRAME_SIZE_MAX + 1), "frame of"),
        (struct.pack(">I", 0), "end inside a value"),
        (frame([0, 1, "PING"]), "array of 3"),
        (frame([1, 1, None, None]), "message type 1"),
        (frame([2, "PING", [], 1]), "message type 2"),
        (frame([0, -1, "PING", []]), "does not fit"),
        (frame([0, 1, 2, []]), "another type"),
        (frame([0, 1, "ECHO", {1: 2}]), "not a str"),
        (frame([0, 1, "GET", {}]), "another type"),
        (frame([0, 1, "GET", [0]]), "2 to 5 params"),
        (frame([0, 1, "GET", [0, [[1]], 2, None, None, 1]]), "2 to 5 params"),
        (frame([0, 1, "GET", [0, [[1]], 9]]), "format 9"),
        (frame([0, 1, "GET", [0, [[1]], "x"]]), "another type"),
        (frame([0, 1, "GET", [0, 7]]), "another type"),
        (frame([0, 1, "GET", ["x", [[1]]]]), "another type"),
    ],
)
def test_a_broken_message_gets_error_41_and_ends_the_stream(half: Half, data: bytes, says: str) -> None:
    (reply,) = payloads(half.session.receive(data + STREAM))
    assert reply[2][0] == 41
    assert says in reply[2][1]
    assert half.session.is_closing
    assert half.session.receive(STREAM) is None


def test_bytes_behind_a_message_in_its_frame_end_the_stream(half: Half) -> None:
    for message in ([0, 1, "ECHO", 1], [0, 1, "GET", [0, [[7]], 2]]):
        payload = bytes(msgpack.packb(message)) + b"\xc0"
        half = Half()
        (reply,) = payloads(half.session.receive(struct.pack(">I", len(payload)) + payload))
        assert reply[1:] == [1, [41, "request: 1 B follow the message in its frame"], None]


def test_nothing_but_hello_is_answered_before_hello() -> None:
    half = Half(greeted=False)
    (reply,) = payloads(half.session.receive(frame([0, 1, "GET", [0, [[1]]]])))
    assert reply[2][0] == 41
    assert "HELLO first" in reply[2][1]
    assert half.messages == []


def test_a_get_is_held_to_its_limits_before_any_work(half: Half) -> None:
    (reply,) = payloads(half.session.receive(frame([0, 1, "GET", [0, [ints(*range(101))], 2]])))
    assert reply[2] == [20, "101 entities in one GET, at most 100; split the request"]
    half.session.greet(4096)
    (reply,) = payloads(half.session.receive(frame([0, 2, "GET", [1, [[1] * 100, ["x"] * 100, [1] * 100]]])))
    assert reply[2][0] == 20
    assert "a frame takes 4096 B" in reply[2][1]


def test_a_reply_too_long_for_the_peer_becomes_an_error(half: Half) -> None:
    half.session.greet(4096)
    (reply,) = payloads(half.session.receive(frame([0, 1, "ECHO", "x" * 5000])))
    assert reply[2][0] == 20
    assert "ask for fewer" in reply[2][1]


class Unpackable:
    """A value that begins like an array and then fails as no error of ours."""

    def tolist(self) -> list[Any]:
        raise ZeroDivisionError("while packing")


def test_a_reply_that_cannot_be_packed_leaves_no_half_frame(half: Half) -> None:
    """Whoever answers later, outside the order of the stream, has nobody to take half a frame back for him."""
    session = half.session
    session.reply(1, "before")
    session.reply(2, ["begun", {"deep": [Unpackable()]}])
    session.reply(3, {"not a str": {1: 2}})
    session.reply(4, "after")
    replies = payloads(session.take())
    assert [reply[1] for reply in replies] == [1, 2, 3, 4]
    assert [reply[3] for reply in replies] == ["before", None, None, "after"]
    assert replies[1][2] == [1, "internal error: ZeroDivisionError: while packing"]
    assert payloads(session.receive(frame([0, 5, "ECHO", 5]))) == [[1, 5, None, 5]]


def test_a_failed_get_leaves_no_bytes_of_its_answer(half: Half) -> None:
    replies = payloads(
        half.session.receive(frame([0, 1, "GET", [0, [[7], [8]], 2]]) + frame([0, 2, "GET", [0, [[7]], 2]]))
    )
    assert [reply[2] and reply[2][0] for reply in replies] == [20, None]


def test_an_arrow_get_goes_to_python_after_its_checks(half: Half) -> None:
    assert half.session.receive(frame([0, 1, "GET", [0, [[7]], 4]])) is None
    assert half.messages[-1] == (1, "GET", [0, [[7]], 4])
    with pytest.raises(UnknownPlan):
        half.session.plan(7)


messages = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 200)
    | st.floats()
    | st.binary(max_size=20)
    | st.sampled_from(["GET", "x"]),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=3),
    max_leaves=20,
)
requests = st.tuples(st.just(0), st.integers(0, 300), st.sampled_from(["GET", "ECHO"]), messages).map(list)
gets = st.lists(messages, max_size=6).map(lambda params: [0, 1, "GET", [0, *params]])


@given(
    st.lists(
        st.binary(max_size=60).map(lambda data: struct.pack(">I", len(data)) + data)
        | requests.map(frame)
        | gets.map(frame)
        | st.binary(max_size=9),
        max_size=6,
    )
)
def test_hostile_bytes_get_well_formed_replies_and_the_session_survives(parts: list[bytes]) -> None:
    half = Half()
    for part in parts:
        for reply in payloads(half.session.receive(part)):
            assert reply[0] == 1
            assert reply[2] is None or reply[2][0] in CODE_OF.values()
            assert not (reply[2] and reply[2][0] == 41) or half.session.is_closing


# The client's half ---------------------------------------------------------------------------------------------------


def described(store: TableStore, features: list[str]) -> dict[str, Any]:
    plan = store.plan(features)
    return {
        "plan": 0,
        "keys": list(zip(plan.key_names, plan.key_types, strict=True)),
        "features": [[name, str(dtype)] for name, dtype in zip(plan.features, plan.dtypes, strict=True)],
        "views": plan.views,
        "view_of": plan.view_of,
        "matrix_columns": plan.matrix_columns,
    }


def answered(features: list[str], rows: Any, wanted: Format, *times: int | None) -> tuple[PreparedPlan, bytes]:
    """A GET through both halves: the plan as the client knows it and the reply's frame."""
    half = Half()
    half.session.add_plan(half.store.plan(features))
    plan = PreparedPlan({**described(half.store, features), "plan": 2})
    count = plan.entities(rows)
    out = half.session.receive(plan.encode(5, 0, count, wanted, *(times or (None, None))))
    assert out is not None
    return plan, bytes(out)


def test_a_matrix_arrives_the_same_in_any_pieces() -> None:
    plan, reply = answered(NUMBERS, {"user_id": np.arange(5, 10)}, Format.FLOAT64)
    for cut in range(len(reply)):
        inbox = Inbox(FRAME_SIZE_MAX, 256)
        out = np.empty((5, 3))
        come = -1
        for piece in (reply[:cut], reply[cut:]):
            if come >= 0:
                out.data.cast("B")[come:] = piece
                come += len(piece)
                continue
            put(inbox, piece)
            come = inbox.matrix(5, 5, 3, out)
        assert come == out.nbytes
        assert out[:3, 0].tolist() == [5.0, 6.0, 1.5]
        assert np.isnan(out[3:]).all()
        assert inbox.frame() is None
    assert plan.matrix_columns == 3


def put(inbox: Inbox, data: bytes) -> None:
    while data:
        inbox.make_room()
        with memoryview(inbox) as space:
            size = min(len(space), len(data))
            space[:size] = data[:size]
        inbox.filled(size)
        data = data[size:]


def test_frames_and_matrices_behind_one_another_keep_their_order() -> None:
    _, reply = answered(NUMBERS, {"user_id": [1, 2]}, Format.FLOAT32, NOW_US, NOW_US + 50)
    inbox = Inbox(FRAME_SIZE_MAX, 256)
    put(inbox, frame([1, 4, None, "first"]) + reply + frame([1, 6, None, "x" * 5000]) + frame([1, 7, None, 3])[:6])
    out = np.empty((2, 3), np.float32)
    assert unpack(inbox.frame() or b"") == [1, 4, None, "first"]
    assert inbox.matrix(5, 2, 3, out) == out.nbytes
    assert out[:, 0].tolist() == [1.0, 2.0]
    assert unpack(inbox.frame() or b"") == [1, 6, None, "x" * 5000]
    assert inbox.frame() is None


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ([1, 6, None, [b"\0", b"\0" * 8, 1, 1, b"\0" * 8]], "not the 1 x 1 matrix of request 5"),
        ([1, 5, None, [b"\0", b"\0" * 8, 2, 1, b"\0" * 8]], "not the 1 x 1 matrix"),
        ([1, 5, None, [b"\0", b"\0" * 8, 1, 1, b"\0" * 16]], "not the 1 x 1 matrix"),
        ([1, 5, None, [b"\0", b"\0" * 8, 1, 1, 7]], "not the 1 x 1 matrix"),
        ([1, 5, None, [b"\0", b"\0" * 8, 1, 1]], "not the 1 x 1 matrix"),
        ([1, 5, None, 3], "not the 1 x 1 matrix"),
        ([0, 5, None, []], "not the 1 x 1 matrix"),
        ([1, 5, 3, None], r"not \[code, message\]"),
        ([1, 5, [20], None], r"not \[code, message\]"),
        ([1, 6, [20, "x"], None], "answers request 6, not 5|not the 1 x 1 matrix"),
    ],
)
def test_a_reply_that_is_no_such_matrix_is_the_peers_fault(reply: Any, says: str) -> None:
    inbox = Inbox(FRAME_SIZE_MAX)
    put(inbox, frame(reply))
    with pytest.raises(RemoteProtocolError, match=says):
        inbox.matrix(5, 1, 1, np.empty((1, 1)))


def test_an_error_reply_to_a_matrix_is_raised_as_its_class_once_it_is_whole() -> None:
    reply = frame([1, 5, [20, "what, which, limit"], None])
    inbox = Inbox(FRAME_SIZE_MAX)
    put(inbox, reply[:-1])
    assert inbox.matrix(5, 1, 1, np.empty((1, 1))) == -1
    put(inbox, reply[-1:])
    with pytest.raises(DataError, match="what, which, limit"):
        inbox.matrix(5, 1, 1, np.empty((1, 1)))
    assert inbox.frame() is None


@given(
    st.binary(max_size=80).map(lambda data: struct.pack(">I", len(data)) + data)
    | messages.map(frame)
    | messages.map(lambda m: frame([1, 5, None, m]))
    | st.binary(max_size=40)
)
def test_hostile_replies_give_only_remote_protocol_errors_or_the_error_they_carry(data: bytes) -> None:
    inbox = Inbox(1000)
    put(inbox, data)
    with suppress(RemoteProtocolError):
        inbox.matrix(5, 1, 1, np.empty((1, 1)))
    inbox = Inbox(1000)
    put(inbox, data)
    with suppress(RemoteProtocolError):
        payload = inbox.frame()
        if payload is not None:
            reply_of(payload)


plans = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("plan", "keys", "features", "views", "view_of", "matrix_columns"), messages),
)


@given(plans | messages)
def test_a_hostile_answer_to_prepare_is_the_peers_fault(answer: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        PreparedPlan(answer)


@given(messages)
def test_hostile_results_of_get_are_the_peers_fault(result: Any) -> None:
    plan = PreparedPlan(described(filled_store(), EVERYTHING))
    with pytest.raises(RemoteProtocolError):
        columns_of(plan, result)
    with pytest.raises(RemoteProtocolError):
        matrix_of(result, np.empty((3, 3)))


def test_columns_arrive_as_the_plan_gives_them_also_in_parts() -> None:
    rows: dict[str, list[Any]] = {
        "user_id": [3, 4, 99],
        "city": ["Paris", "x", "Paris"],
        "zone": [(1 << 64) - 1, 1, (1 << 64) - 1],
    }
    store = filled_store()
    whole = store.plan(EVERYTHING).columns(rows, None, None)
    parts = []
    for one in range(3):
        plan, reply = answered(
            EVERYTHING, {name: column[one : one + 1] for name, column in rows.items()}, Format.COLUMNS
        )
        parts.append(columns_of(plan, reply_of(reply[4:])[2]))
    joined = join_columns(plan, parts)
    assert joined[0].tolist() == whole[0].tolist()
    assert joined[1].tolist() == whole[1].tolist()
    for mine, theirs in zip(joined[2], whole[2], strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert (a is None and b is None) or np.array_equal(a, b, equal_nan=a.dtype.kind == "f")  # type: ignore[arg-type, union-attr]


def test_the_client_refuses_a_server_of_another_version_or_without_limits() -> None:
    for said in (None, {}, {"version": 2}, {"version": 1}, {"version": 1, "frame_size_max": 1, "entities_max": 0}):
        with pytest.raises(RemoteProtocolError, match="HELLO was answered"):
            ClientSession().greeted(said)


def test_one_get_never_asks_for_more_than_a_frame_holds() -> None:
    session = ClientSession(frame_size_max=10_000)
    session.greeted({"version": 1, "frame_size_max": 1 << 20, "entities_max": 1000})
    plan = PreparedPlan(described(filled_store(), ["user:x"]))
    assert session.entities_per_request(plan) == (10_000 - 256) // (8 + 9)
    assert plan.dtypes == (DType("float64"),)


def test_pack_and_stock_msgpack_agree_on_a_request() -> None:
    assert pack([0, 1, "PING", []]) == msgpack.packb([0, 1, "PING", []])
