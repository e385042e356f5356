"""Every error fastfeat raises, and the one table that gives each class its code on the wire.

FastFeatError
+-- SchemaError (ValueError)   UnknownView, UnknownFeature, IncompatibleSchema
+-- DataError (ValueError)
+-- StorageError               ArenaFull, ArenaCorrupt, LayoutMismatch, BeforeHistory, DirectoryLocked,
|                              ReadOnly (DiskFull, LogFailed), LogCorrupt, SnapshotCorrupt, HistoryCorrupt,
|                              WriterUnavailable, NotYetVisible
+-- ProtocolError              LocalProtocolError, RemoteProtocolError, UnknownPlan
+-- TransportError             ConnectFailed, Timeout, Disconnected

A message says what, which, the limit and the remedy.
"""

from __future__ import annotations

from typing import Any


class FastFeatError(Exception):
    """Base of every error that fastfeat raises on purpose."""

    report: Any = None  # of a failed load: the LoadReport of what it had taken before


class SchemaError(FastFeatError, ValueError):
    """A definition is wrong, or does not fit what is already applied."""


class UnknownView(SchemaError):
    """No feature view or service of that name is applied."""


class UnknownFeature(SchemaError):
    """The view has no field of that name."""


class IncompatibleSchema(SchemaError):
    """A changed definition cannot take over the rows of the applied one."""


class DataError(FastFeatError, ValueError):
    """A value, key, time or column does not fit its definition."""


class StorageError(FastFeatError):
    """The store cannot hold or find what was asked."""


class ArenaFull(StorageError):
    """The memory limit is reached; the write that met it changed nothing."""


class ArenaCorrupt(StorageError):
    """The arena breaks one of its own rules."""


class LayoutMismatch(StorageError):
    """The arena was made by another layout, byte order or schema."""


class BeforeHistory(StorageError):
    """The answer needs rows that retention dropped and no history holds."""


class DirectoryLocked(StorageError):
    """Another process owns the store's directory."""


class ReadOnly(StorageError):
    """The store takes no writes: it was opened so, or its disk allows none. Reads go on."""


class DiskFull(ReadOnly):
    """No space for the log; the write changed nothing. Writes are taken again when there is space."""


class LogFailed(ReadOnly):
    """A sync of the log failed: what the disk holds is unknown; no write is taken until the store is opened again."""


class LogCorrupt(StorageError):
    """The log is damaged below a point that was promised to be durable."""


class SnapshotCorrupt(StorageError):
    """A snapshot's bytes do not match its manifest."""


class HistoryCorrupt(StorageError):
    """A file of the history is missing or does not match its catalog."""


class WriterUnavailable(StorageError):
    """The writer process is gone or coming back. The message says whether the request may have been done; what only
    reads can be asked again."""


class NotYetVisible(StorageError):
    """What this process sees has not reached the position that was waited for."""


class ProtocolError(FastFeatError):
    """Bytes or messages that break docs/PROTOCOL.md."""


class LocalProtocolError(ProtocolError):
    """We were about to break the protocol; nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol; the connection is closed."""


class UnknownPlan(ProtocolError):
    """The connection has no plan of that number; PREPARE it again."""


class TransportError(FastFeatError):
    """The network failed, not the request."""


class ConnectFailed(TransportError):
    """No connection could be made."""


class Timeout(TransportError, TimeoutError):
    """No answer within the time allowed."""


class Disconnected(TransportError):
    """The connection ended before the answer came."""


# One code per class. Codes are part of the wire format: never reused, never renumbered.
CODE_OF: dict[type[FastFeatError], int] = {
    FastFeatError: 1,
    SchemaError: 10,
    UnknownView: 11,
    UnknownFeature: 12,
    IncompatibleSchema: 13,
    DataError: 20,
    StorageError: 30,
    ArenaFull: 31,
    ArenaCorrupt: 32,
    LayoutMismatch: 33,
    BeforeHistory: 34,
    DirectoryLocked: 35,
    ReadOnly: 36,
    DiskFull: 37,
    LogFailed: 38,
    LogCorrupt: 39,
    ProtocolError: 40,
    RemoteProtocolError: 41,
    UnknownPlan: 42,
    SnapshotCorrupt: 50,
    HistoryCorrupt: 51,
    WriterUnavailable: 52,
    NotYetVisible: 53,
    ConnectFailed: 60,
}
CLASS_OF: dict[int, type[FastFeatError]] = {code: cls for cls, code in CODE_OF.items()}


def code_of(error: BaseException) -> int:
    """The wire code of the error's nearest listed class; 1 where none is listed."""
    for cls in type(error).__mro__:
        if cls in CODE_OF:
            return CODE_OF[cls]
    return CODE_OF[FastFeatError]


def error_of(code: int, message: str) -> FastFeatError:
    """The error a peer sent, as the same class; an unlisted code gives FastFeatError."""
    return CLASS_OF.get(code, FastFeatError)(message)
