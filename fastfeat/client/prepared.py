"""Prepared plans with request fields: what an on-demand feature's function reads goes with the keys.

entity_rows --keys--> PreparedPlan --+
            --request fields---------+--encode--> the keys part of a GET
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._core.request import plain_keys
from ..errors import DataError, RemoteProtocolError, SchemaError
from ..protocol import PreparedPlan
from ..request_fields import RequestReader, plain_values, wire_values
from ..schema import Field


def prepared(described: object) -> PreparedPlan:
    """The plan that the answer to PREPARE describes. Raises RemoteProtocolError."""
    plan = PreparedPlan(described)
    return RequestPlan(described) if plan.request_fields else plan


def entities_of(plan: PreparedPlan, entity_rows: Any) -> dict[str, list[Any]]:
    """Keys and request fields as plain values, as ANSWER takes them. Raises DataError."""
    fields = plan.plain_fields(entity_rows) if isinstance(plan, RequestPlan) else {}
    return plain_keys(plan.key_names, plan.key_types, entity_rows) | fields


class RequestPlan(PreparedPlan):
    """A plan whose entities come with request fields."""

    def __init__(self, described: object) -> None:
        super().__init__(described)
        try:
            self._fields = [Field(name, dtype) for name, dtype in self.request_fields]
        except SchemaError as error:
            raise RemoteProtocolError(f"reply to PREPARE is not a plan: {error}") from None
        self._request = RequestReader(self._fields)

    def entities(self, entity_rows: Any) -> int:
        """As PreparedPlan.entities; takes their request fields too."""
        columns = self._request.read(entity_rows)
        given = len(next(iter(columns.values()))[0])
        count = super().entities(entity_rows) if self.key_names else given
        if given != count:
            raise DataError(
                f"request field {self._fields[0].name!r} has {given} values for {count} entities; give one each"
            )
        self.more_columns = lambda start, stop: [
            wire_values(field.dtype, columns[field.name], start, stop) for field in self._fields
        ]
        return count

    def entity(self, entity_row: Mapping[str, object]) -> None:
        """As PreparedPlan.entity."""
        self.entities([entity_row])

    def plain_fields(self, entity_rows: Any) -> dict[str, list[Any]]:
        """The request fields as plain values."""
        columns = self._request.read(entity_rows)
        return {field.name: plain_values(field.dtype, columns[field.name]) for field in self._fields}
