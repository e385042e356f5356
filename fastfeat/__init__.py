"""fastfeat: a feature server that answers in microseconds and never lies about time."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .aggregation import Aggregation as Aggregation
    from .client import AsyncClient as AsyncClient
    from .client import Client as Client
    from .client import connect as connect
    from .client import connect_async as connect_async
    from .dtypes import DType as DType
    from .errors import ArenaCorrupt as ArenaCorrupt
    from .errors import ArenaFull as ArenaFull
    from .errors import BeforeHistory as BeforeHistory
    from .errors import ConnectFailed as ConnectFailed
    from .errors import DataError as DataError
    from .errors import DirectoryLocked as DirectoryLocked
    from .errors import Disconnected as Disconnected
    from .errors import DiskFull as DiskFull
    from .errors import FastFeatError as FastFeatError
    from .errors import HistoryCorrupt as HistoryCorrupt
    from .errors import IncompatibleSchema as IncompatibleSchema
    from .errors import LayoutMismatch as LayoutMismatch
    from .errors import LocalProtocolError as LocalProtocolError
    from .errors import LogCorrupt as LogCorrupt
    from .errors import LogFailed as LogFailed
    from .errors import ProtocolError as ProtocolError
    from .errors import ReadOnly as ReadOnly
    from .errors import RemoteProtocolError as RemoteProtocolError
    from .errors import SchemaError as SchemaError
    from .errors import SnapshotCorrupt as SnapshotCorrupt
    from .errors import StorageError as StorageError
    from .errors import Timeout as Timeout
    from .errors import TransportError as TransportError
    from .errors import UnknownFeature as UnknownFeature
    from .errors import UnknownPlan as UnknownPlan
    from .errors import UnknownView as UnknownView
    from .explain import Explanation as Explanation
    from .ondemand import OnDemandFeatureView as OnDemandFeatureView
    from .ondemand import on_demand_feature_view as on_demand_feature_view
    from .receipts import Receipt as Receipt
    from .report import LoadReport as LoadReport
    from .result import Result as Result
    from .schema import Entity as Entity
    from .schema import Feature as Feature
    from .schema import FeatureService as FeatureService
    from .schema import FeatureView as FeatureView
    from .schema import Field as Field
    from .schema import WindowView as WindowView
    from .status import Status as Status
    from .store import Store as Store

# Module -> its public names. Each is loaded when a name of it is first used, so that a client imports neither pyarrow
# nor the core, and `import fastfeat` costs nothing.
PUBLIC = {
    "aggregation": ("Aggregation",),
    "client": ("AsyncClient", "Client", "connect", "connect_async"),
    "dtypes": ("DType",),
    "errors": (
        "ArenaCorrupt",
        "ArenaFull",
        "BeforeHistory",
        "ConnectFailed",
        "DataError",
        "DirectoryLocked",
        "Disconnected",
        "DiskFull",
        "FastFeatError",
        "HistoryCorrupt",
        "IncompatibleSchema",
        "LayoutMismatch",
        "LocalProtocolError",
        "LogCorrupt",
        "LogFailed",
        "ProtocolError",
        "ReadOnly",
        "RemoteProtocolError",
        "SchemaError",
        "SnapshotCorrupt",
        "StorageError",
        "Timeout",
        "TransportError",
        "UnknownFeature",
        "UnknownPlan",
        "UnknownView",
    ),
    "ondemand": ("OnDemandFeatureView", "on_demand_feature_view"),
    "explain": ("Explanation",),
    "receipts": ("Receipt",),
    "report": ("LoadReport",),
    "result": ("Result",),
    "schema": ("Entity", "Feature", "FeatureService", "FeatureView", "Field", "WindowView"),
    "status": ("Status",),
    "store": ("Store",),
}
MODULE_OF = {name: module for module, names in PUBLIC.items() for name in names}
__all__ = [name for names in PUBLIC.values() for name in names]


def __getattr__(name: str) -> object:
    if name not in MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULE_OF})
