"""The codec against a stock msgpack, and against hostile bytes."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfeat._core.codec import FrameSplitter, pack, pack_frame, unpack
from fastfeat.errors import DataError, LocalProtocolError, RemoteProtocolError

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=300)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20), max_leaves=60
)


def stock_pack(value: object) -> bytes:
    return bytes(msgpack.packb(value))


@given(values)
def test_what_stock_msgpack_packs_is_read_and_written_alike(value: Any) -> None:
    stock = stock_pack(value)
    assert unpack(stock) == value
    assert pack(value) == stock


@pytest.mark.parametrize(
    "value",
    [
        *[sign * (1 << bits) + step for bits in range(63) for sign in (1, -1) for step in (-1, 0, 1)],
        -(1 << 63),
        1 << 63,
        (1 << 64) - 1,
        *["x" * size for size in (31, 32, 255, 256, 65_535, 65_536)],
        *[b"x" * size for size in (0, 255, 256, 65_535, 65_536)],
        *[[0] * size for size in (15, 16, 65_535, 65_536)],
        *[{str(i): i for i in range(size)} for size in (15, 16, 65_535, 65_536)],
    ],
    ids=lambda value: f"{type(value).__name__}{value if isinstance(value, int) else len(value)}",
)
def test_each_edge_of_each_form_is_the_shortest_one(value: Any) -> None:
    assert pack(value) == stock_pack(value)
    assert unpack(pack(value)) == value


def test_nan_keeps_its_bits() -> None:
    assert pack(struct.unpack("<d", b"\x01\x00\x00\x00\x00\x00\xf8\x7f")[0])[1:] == b"\x7f\xf8\x00\x00\x00\x00\x00\x01"


def test_float32_is_read_as_its_value() -> None:
    assert unpack(b"\xca\x3f\xc0\x00\x00") == 1.5


def test_numpy_values_and_aware_times_travel_as_plain_ones() -> None:
    assert unpack(pack([np.int64(3), np.float32(1.5), np.bool_(True), np.arange(3)])) == [3, 1.5, True, [0, 1, 2]]
    assert unpack(pack(datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=UTC))) == 1_000_005
    assert unpack(pack(datetime(1, 1, 1, tzinfo=UTC))) == -62_135_596_800_000_000


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        (1 << 64, DataError, "does not fit in 64 bits"),
        (-(1 << 63) - 1, DataError, "does not fit in 64 bits"),
        ("\ud800", DataError, "lone surrogate"),
        (datetime(2020, 1, 1), DataError, "has no zone"),
        (object(), DataError, "type object cannot be sent"),
        ({1: 2}, LocalProtocolError, "must be a str"),
    ],
)
def test_what_the_wire_cannot_carry_is_refused_before_anything_is_sent(
    value: object, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        pack(value)


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def test_sixteen_levels_pass_and_seventeen_do_not() -> None:
    assert unpack(stock_pack(nested(16))) == nested(16)
    assert pack(nested(16)) == stock_pack(nested(16))
    with pytest.raises(RemoteProtocolError, match="16 deep"):
        unpack(stock_pack(nested(17)))
    with pytest.raises(LocalProtocolError, match="16 deep"):
        pack(nested(17))


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "end inside"),
        (b"\xc1", "another type"),
        (b"\xd6\xff\x00\x00\x00\x00", "another type"),
        (b"\xdd\xff\xff\xff\xff\x00", "end inside"),
        (b"\xdf\xff\xff\xff\xff\x00", "end inside"),
        (b"\xdb\xff\xff\xff\xff", "end inside"),
        (b"\xc6\xff\xff\xff\xff", "end inside"),
        (b"\x01\x02", "1 B follow"),
        (b"\x81\x01\x02", "key is not a str"),
        (b"\x82\xa1a\x01\xa1a\x02", "'a' twice"),
        (b"\xa1\xff", "not UTF-8"),
        (b"\xa3\xed\xa0\x80", "not UTF-8"),
    ],
)
def test_malformed_payload_names_its_fault(payload: bytes, says: str) -> None:
    with pytest.raises(RemoteProtocolError, match=says):
        unpack(payload)


def test_many_tiny_values_are_refused_before_they_fill_memory() -> None:
    with pytest.raises(RemoteProtocolError, match="values in one message"):
        unpack(b"\xdd\x00\x50\x00\x00" + b"\xc0" * 0x500000)


@given(st.binary(max_size=200))
def test_hostile_payload_gives_a_value_or_a_remote_protocol_error(payload: bytes) -> None:
    try:
        value = unpack(payload)
    except RemoteProtocolError:
        return
    assert unpack(pack(value)) == value or value != value or "nan" in repr(value)


@given(values, st.data())
def test_every_truncation_is_noticed(value: Any, data: st.DataObject) -> None:
    payload = stock_pack(value)
    cut = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(RemoteProtocolError):
        unpack(payload[:cut])


@given(st.lists(st.binary(max_size=100), max_size=8), st.data())
def test_frames_come_out_the_same_however_the_bytes_were_cut(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(struct.pack(">I", len(payload)) + payload for payload in payloads)
    tail = data.draw(st.sampled_from([b"", b"\x00", b"\x00\x00\x00\x09abc"]))
    splitter = FrameSplitter()
    assert splitter.feed(stream + tail) == payloads
    assert splitter.held_size == len(tail)
    splitter = FrameSplitter()
    assert [out for byte in stream + tail for out in splitter.feed(bytes([byte]))] == payloads
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    splitter = FrameSplitter()
    pieces = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [out for piece in pieces for out in splitter.feed(piece)] == payloads


def test_a_frame_over_the_limit_is_refused_at_its_head() -> None:
    splitter = FrameSplitter(frame_size_max=10)
    assert splitter.feed(struct.pack(">I", 10) + b"x" * 10) == [b"x" * 10]
    with pytest.raises(RemoteProtocolError, match="11 B, at most 10 B"):
        splitter.feed(struct.pack(">I", 11))


def test_a_frame_is_its_size_and_its_payload() -> None:
    assert pack_frame([1, "a"]) == b"\x00\x00\x00\x04\x92\x01\xa1a"
    with pytest.raises(LocalProtocolError, match="message of 12 B, the peer allows frames of 11 B"):
        pack_frame(b"x" * 10, 11)
