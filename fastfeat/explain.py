"""Explain: how one value of one answer came about.

    view:feature, entity, T, K --> the definition --> the entity's rows, each with what became of it --> the value
                                                      and, of a window, the blocks and tiles it was summed from
    an on-demand feature       --> its source ------> its inputs, each explained in turn

What is shown is read by the same plan as the answer; what became of a row is said anew, in Python, from the meaning of
docs/SEMANTICS.md: where the two disagree one of them is wrong.
"""

from __future__ import annotations

import operator as op
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ._core.exports import export_keys
from ._core.plan import Plan
from .aggregation import Aggregation, aggregation_to_dict
from .applied import needed
from .computed import compile_plan
from .definitions import definition_dict, definition_to_dict
from .ondemand import OnDemandFeatureView
from .result import Result
from .rows import rows_batch
from .schema import Feature, FeatureView, WindowView
from .status import Status
from .times import format_us, to_us

if TYPE_CHECKING:
    import pyarrow as pa

    from ._core.table import Clock, Table
    from .applied import Definitions

TILE_ROWS: Final = 8
SHOWN_ROWS: Final = 20
OUTCOME: Final = "outcome"  # the column of what became of a row
COUNTED: Final = "counted"
COMPARISONS: Final = {"==": op.eq, "!=": op.ne, "<": op.lt, "<=": op.le, ">": op.gt, ">=": op.ge}


@dataclass(frozen=True)
class Span:
    """A part of a window: rows [first, end) of one block.

    tiles: of eight rows each, [first, end): taken as one difference of running sums that count 2**anchor. None: the
           rows were read one by one.
    """

    block_rows: int
    first: int
    end: int
    tiles: tuple[int, int] | None
    anchor: int | None

    def __str__(self) -> str:
        text = f"rows {self.first} to {self.end - 1} of a block of {self.block_rows}"
        if self.tiles is None:
            return f"{text}, one by one"
        first, end = self.tiles[0] * TILE_ROWS, self.tiles[1] * TILE_ROWS
        return f"{text}, of them {first} to {end - 1} as the difference of two sums in multiples of 2**{self.anchor}"


@dataclass(frozen=True)
class Explanation:
    """One value, and where it came from.

    feature, entity, as_of, known_at: what was asked; times in microseconds since 1970 UTC, known_at None: everything.
    value, status: the answer. event_time: of the row that answered, or of the last one before a window's end.
    definition:    of the feature's view as plain values; version: of all definitions, None of a store in memory.
    rows:          of the entity: join keys, event_timestamp, created_timestamp, _sequence, fields, and "outcome": what
                   became of each; None of an on-demand feature.
    spans:         of a window, the blocks that it was read from.
    inputs:        of an on-demand feature, what its function read.
    """

    feature: str
    entity: Mapping[str, object]
    as_of: int
    known_at: int | None
    value: Any
    status: Status
    event_time: int | None
    definition: Mapping[str, Any]
    version: int | None
    rows: pa.Table | None = None
    spans: Sequence[Span] = ()
    inputs: Sequence[Explanation] = field(default=())

    @property
    def counted(self) -> pa.Table | None:
        """The rows that made the value."""
        if self.rows is None:
            return None
        import pyarrow.compute as pc

        return self.rows.filter(pc.equal(self.rows.column(OUTCOME), COUNTED))

    def __str__(self) -> str:
        return "\n".join(self._lines(""))

    def _lines(self, indent: str) -> Iterator[str]:
        known = "everything known" if self.known_at is None else f"what was known by {format_us(self.known_at)}"
        yield f"{indent}{self.feature} = {self.value!r} ({self.status.name})"
        yield f"{indent}  of {dict(self.entity)} as of {format_us(self.as_of)}, from {known}"
        version = "" if self.version is None else f", version {self.version} of the definitions"
        yield f"{indent}  defined as {self.definition}{version}"
        if self.rows is not None:
            counted = self.counted
            assert counted is not None
            yield f"{indent}  {counted.num_rows} of {self.rows.num_rows} rows counted"
            for row in self.rows.slice(max(0, self.rows.num_rows - SHOWN_ROWS)).to_pylist():
                yield f"{indent}    {row.pop(OUTCOME)}: {row}"
        for span in self.spans:
            yield f"{indent}  {span}"
        for each in self.inputs:
            yield from each._lines(indent + "  ")


def explain(
    clock: Clock,
    definitions: Definitions,
    tables: Mapping[str, Table],
    feature: Feature,
    entity: Mapping[str, object],
    as_of: int,
    known_at: int | None,
    version: int | None,
) -> Explanation:
    """Explain one feature of one entity over these tables. Raises as the read itself."""
    plan = compile_plan(clock, definitions, [feature], tables)
    result = Result(plan.features, plan.dtypes, plan.views, plan.view_of, *plan.columns([entity], as_of, known_at))
    name, view = str(feature), definitions.readable[feature.view]
    common: dict[str, Any] = {
        "feature": name,
        "entity": entity,
        "as_of": as_of,
        "known_at": known_at,
        "value": result.to_dict()[name][0],
        "status": Status(int(result.status(name)[0])),
        "version": version,
    }
    if isinstance(view, OnDemandFeatureView):
        stored, functions = needed([feature], definitions.readable)
        inputs = [each for each in [*stored, *(i for f in functions for i in f.inputs)] if each in view.inputs]
        parts = [
            explain(clock, definitions, tables, each, entity, as_of, known_at, version)
            for each in dict.fromkeys(inputs)
        ]
        return Explanation(**common, event_time=None, definition=definition_to_dict(view), inputs=parts)
    stored_view = definitions.stored(feature.view)
    rows = rows_of(stored_view, tables[stored_view.name], entity)
    has_row = common["status"] not in (Status.NOT_FOUND, Status.DELETED)
    event_time = int(result.event_times[feature.view][0]) if has_row else None
    if isinstance(view, FeatureView):
        outcomes = point_outcomes(view, rows, as_of, known_at)
        return Explanation(
            **common,
            event_time=event_time,
            definition=definition_dict(view),
            rows=rows.append_column(OUTCOME, [outcomes]),
        )
    assert isinstance(view, WindowView)
    assert isinstance(plan, Plan)
    aggregation = next(each for each in view.features if each.name == feature.field)
    outcomes = window_outcomes(stored_view, aggregation, rows, as_of, known_at)
    return Explanation(
        **common,
        event_time=event_time,
        definition={"view": view.name, "source": view.source.name, **aggregation_to_dict(aggregation)},
        rows=rows.append_column(OUTCOME, [outcomes]),
        spans=[
            Span(count, first, end, (a, b) if anchor is not None else None, anchor)
            for count, first, end, a, b, anchor in plan.spans(name, entity, as_of, known_at)
        ],
    )


def rows_of(view: FeatureView, table: Table, entity: Mapping[str, object]) -> pa.Table:
    """The entity's rows in their order."""
    import pyarrow as pa

    keys = {name: [entity[name]] for name in view.entity.join_keys}
    return pa.Table.from_batches([rows_batch(view, export_keys(table, keys, 2**64 - 1))])


def stamps(rows: pa.Table) -> list[tuple[int, int]]:
    """(event time, created time) of each row, in microseconds."""
    import pyarrow as pa

    columns = (rows.column(name).cast(pa.int64()).to_pylist() for name in ("event_timestamp", "created_timestamp"))
    return list(zip(*columns, strict=True))


def point_outcomes(view: FeatureView, rows: pa.Table, as_of: int, known_at: int | None) -> list[str]:
    """Of a point read: the last row that had happened and was known counts, unless it is too old."""
    outcomes = []
    for event_us, created_us in stamps(rows):
        if event_us > as_of:
            outcomes.append("later than the read")
        elif known_at is not None and created_us > known_at:
            outcomes.append("not known yet")
        else:
            outcomes.append("replaced by a later row")
    found = [i for i, outcome in enumerate(outcomes) if outcome.startswith("replaced")]
    if found:
        age_us = as_of - stamps(rows)[found[-1]][0]
        outcomes[found[-1]] = "older than ttl" if view.ttl_us is not None and age_us > view.ttl_us else COUNTED
    return outcomes


def window_outcomes(
    view: FeatureView, aggregation: Aggregation, rows: pa.Table, as_of: int, known_at: int | None
) -> list[str]:
    """Of a window: rows inside of it that were known, meet the conditions and have a value count."""
    end = as_of - aggregation.delay_us
    start = end - aggregation.window_us
    conditions = [
        (column, operator, value, rows.column(column).to_pylist()) for column, operator, value in aggregation.where
    ]
    values = None if aggregation.column is None else rows.column(aggregation.column).to_pylist()
    outcomes = []
    for i, (event_us, created_us) in enumerate(stamps(rows)):
        if event_us < start or (event_us == start and aggregation.closed in ("right", "neither")):
            outcomes.append("before the window")
        elif event_us > end or (event_us == end and aggregation.closed in ("left", "neither")):
            outcomes.append("after the window")
        elif known_at is not None and created_us > known_at:
            outcomes.append("not known yet")
        elif failed := next((f"{c} {o} {v!r}" for c, o, v, held in conditions if not meets(held[i], o, v)), None):
            outcomes.append(f"does not meet {failed}")
        elif values is not None and values[i] is None:
            outcomes.append("null")
        else:
            outcomes.append(COUNTED)
    return outcomes


def meets(held: Any, operator: str, value: Any) -> bool:
    """Whether a row's value meets a condition; a null meets none."""
    if held is None:
        return False
    if hasattr(held, "utcoffset"):
        held = to_us(held)
    if operator in ("in", "not in"):
        return (held in value) == (operator == "in")
    compare: Callable[[Any, Any], bool] = COMPARISONS[operator]
    return compare(held, value)
