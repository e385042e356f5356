"""The client's half of LOAD: each part of a source becomes chunks of one Arrow stream, sent ahead of the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from ..errors import DataError, RemoteProtocolError
from ..report import LoadReport

CHUNK_SIZE: Final = 1 << 20  # bytes from which a chunk is sent: large enough that the round trips do not count
CHUNKS_UNANSWERED_MAX: Final = 4  # what the server queues before it stops reading


def streams(
    source: object, event_time: str, created_time: str | None, report: LoadReport, advance: Callable[[int], object]
) -> Iterator[tuple[dict[str, Any], Iterator[bytes]]]:
    """The options and chunks of one LOAD for each part of the source. Raises DataError.

    report: told of rows that never get to the server (lines of CSV that are none). advance: told of rows as they go.
    """
    from ..sources import open_source

    for part in open_source(source):
        options = {"event_time": event_time, "created_time": created_time, "text": part.is_csv}
        yield options, chunks(part, report, advance)


def add_report(report: LoadReport, result: object) -> None:
    """Adds a part's report as the server tells it. Raises RemoteProtocolError."""
    try:
        part = LoadReport(**result)  # type: ignore[arg-type]
        report.accepted += part.accepted
        report.rejected += part.rejected
        report.times_floored += part.times_floored
        for reason, rows in part.reasons.items():
            report.reasons[reason] = report.reasons.get(reason, 0) + rows
        report.ignored_columns = tuple(dict.fromkeys((*report.ignored_columns, *part.ignored_columns)))
    except (TypeError, AttributeError):
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


def chunks(part: Any, report: LoadReport, advance: Callable[[int], object]) -> Iterator[bytes]:
    """The Arrow stream of a part in chunks of about CHUNK_SIZE. Raises DataError where it can't be read."""
    import pyarrow as pa

    sink = ChunkSink()
    try:
        with pa.ipc.new_stream(pa.PythonFile(sink, "w"), part.schema) as writer:
            for batch in part.read(part.schema.names, report.reject):
                for piece in sliced(batch):
                    writer.write_batch(piece)
                    if chunk := sink.take(CHUNK_SIZE):
                        yield chunk
                advance(batch.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{part.name}: {error}") from error
    if chunk := sink.take(1):
        yield chunk


def sliced(batch: Any) -> Iterator[Any]:
    """The batch in pieces of about CHUNK_SIZE, so that a large one does not become one large frame."""
    rows = max(1, batch.num_rows * CHUNK_SIZE // max(batch.nbytes, 1))
    return (batch.slice(start, rows) for start in range(0, batch.num_rows, rows))
