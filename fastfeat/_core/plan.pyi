from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import DType
from .arena import Arena
from .table import Clock

Columns = list[tuple[npt.NDArray[np.uint8], npt.NDArray[Any], npt.NDArray[np.uint32] | None]]

class PlansAtHand:
    """An attached store's plans, by the names of services, for as long as its arena holds what they were made of."""

    def turn_to(self, arena: Arena | None, catalogue_word: int, plans: dict[object, Any]) -> None: ...
    def vector(
        self, features: object, entity_row: Mapping[str, object], out: npt.NDArray[np.float64] | None
    ) -> npt.NDArray[np.float64] | None: ...
    def matrix(self, features: object, entity_rows: Any, out: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None: ...

class ReadsAtHand:
    """For a class to inherit: its reads of vectors by the plans at hand, else by its own `_vector` and `_vectors`."""

    @property
    def at_hand(self) -> PlansAtHand: ...
    def read_by(self, at_hand: PlansAtHand) -> None: ...
    def get_feature_vector(
        self,
        features: Any,
        entity_row: Mapping[str, object],
        *,
        as_of: datetime | int | None = None,
        known_at: datetime | int | None = None,
        out: npt.NDArray[Any] | None = None,
    ) -> npt.NDArray[Any]: ...
    def get_feature_vectors(
        self,
        features: Any,
        entity_rows: Any,
        *,
        as_of: datetime | int | None = None,
        known_at: datetime | int | None = None,
        out: npt.NDArray[Any] | None = None,
    ) -> npt.NDArray[Any]: ...

class Plan:
    """Features of one or more tables, read together."""

    key_names: tuple[str, ...]
    key_types: tuple[str, ...]
    views: tuple[str, ...]
    features: tuple[str, ...]
    dtypes: tuple[DType, ...]
    view_of: tuple[int, ...]
    matrix_columns: int
    release_min: int
    def __init__(self, clock: Clock, features: Sequence[tuple[Any, ...]]) -> None: ...
    def vector(
        self,
        entity_row: Mapping[str, object],
        as_of: int | None,
        known_at: int | None,
        out: npt.NDArray[np.float64] | None,
    ) -> npt.NDArray[np.float64]: ...
    def matrix(
        self,
        entity_rows: Any,
        as_of: int | None,
        known_at: int | None,
        out: npt.NDArray[Any] | None,
        dtype: npt.DTypeLike | None = None,
    ) -> npt.NDArray[Any]: ...
    def spans(
        self, feature: str, entity_row: Mapping[str, object], as_of: int | None, known_at: int | None
    ) -> list[tuple[int, int, int, int, int, int | None]]: ...
    def columns_at(
        self, entity_rows: Any, as_of: npt.NDArray[np.int64], known_at: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], Columns]: ...
    def columns(
        self, entity_rows: Any, as_of: int | None, known_at: int | None, size_max: int | None = None
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], Columns]: ...
