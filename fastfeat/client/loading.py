"""The client's half of LOAD: a source in Arrow becomes chunks of one IPC stream, sent while earlier ones are taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from ..errors import RemoteProtocolError

CHUNK_SIZE: Final = 1 << 20  # bytes from which a chunk is sent: large enough that the round trips do not count
CHUNKS_UNANSWERED_MAX: Final = 4  # what the server queues before it stops reading


@dataclass(frozen=True)
class LoadReport:
    """What became of the rows of one load."""

    accepted: int
    rejected: int
    reasons: dict[str, int]
    times_floored: int


def report_of(result: object) -> LoadReport:
    """Raises RemoteProtocolError where the reply is no report."""
    try:
        return LoadReport(**result)  # type: ignore[arg-type]
    except TypeError:
        raise RemoteProtocolError(f"reply to LOAD is {result!r:.100}, not a report") from None


class ChunkSink:
    """A file for Arrow to write to; gives what was written in chunks."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        self._size += len(self._parts[-1])
        return len(self._parts[-1])

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def take(self, size_min: int) -> bytes:
        """All that was written, once it is at least size_min bytes; else nothing."""
        if self._size < size_min:
            return b""
        chunk = b"".join(self._parts)
        self._parts, self._size = [], 0
        return chunk


def chunks(reader: Any) -> Iterator[bytes]:
    """The IPC stream of a RecordBatchReader in chunks of about CHUNK_SIZE."""
    import pyarrow as pa

    sink = ChunkSink()
    with reader, pa.ipc.new_stream(pa.PythonFile(sink, "w"), reader.schema) as writer:
        for batch in reader:
            for part in sliced(batch):
                writer.write_batch(part)
                if chunk := sink.take(CHUNK_SIZE):
                    yield chunk
    if chunk := sink.take(1):
        yield chunk


def sliced(batch: Any) -> Iterator[Any]:
    """The batch in parts of about CHUNK_SIZE, so that a large one does not become one large frame."""
    rows = max(1, batch.num_rows * CHUNK_SIZE // max(batch.nbytes, 1))
    return (batch.slice(start, rows) for start in range(0, batch.num_rows, rows))
