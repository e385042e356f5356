"""Window views: the features of one, compiled once into what windows.pyx reads.

    Aggregations --by range, column and conditions--> groups, functions, conditions, constants --> WindowPlan

Promise:     features of the same values are one group, read in one pass; groups are in the order of their ranges.
             A condition means what it says of numbers as such, whatever types they are written in, see comparable.
Ownership:   a Windows owns the arrays of its plan, and the bytes that its constants point at.
"""

from libc.math cimport HUGE_VAL
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from .aggregates cimport Condition, Constant, WindowFunction, WindowGroup, WindowRange
from .columns cimport BYTES, FLOAT32, FLOAT64, STRING, FieldView
from .exact cimport int128

FUNCTIONS = ("count", "sum", "mean", "min", "max", "first", "last", "std", "var", "count_distinct", "quantile",
             "last_n", "top_k")
OPERATORS = ("==", "!=", "<", "<=", ">", ">=", "in", "not in")
SUMMED = frozenset({"count", "sum", "mean"})
DURATION_MAX_US = 1 << 62         # more than all of time
WHOLE_FAR = 1 << 65               # more than any integer of a column


cdef void* cleared(size_t count, size_t size) except NULL:
    cdef void* memory = calloc(count if count > 0 else 1, size)
    if memory == NULL:
        raise MemoryError("no memory for a window view")
    return memory


cdef class Windows:
    """Features of one window view over a table.

    features: (aggregation, dtype) each; an aggregation has what fastfeat.aggregation.Aggregation has.
    """

    def __cinit__(self, str name, source, RowLayout layout, list features):
        self.name = name
        self.source = source
        self.features = tuple(aggregation.name for aggregation, _ in features)
        self.texts = []
        keys = list(layout.key_names), list(layout.key_types)
        self.layout = RowLayout(name, *keys, [(aggregation.name, dtype, True) for aggregation, dtype in features])
        self.plan.image_stride = self.layout.row_stride
        self.plan.heap_offset = self.layout.heap_offset
        self.answer.row_stride = self.layout.row_stride
        self.answer.heap_offset = self.layout.heap_offset
        self.answer.ttl_us = -1
        ranges = []
        groups = {}
        for i, (aggregation, _) in enumerate(features):
            ends = range_of(aggregation)
            if ends not in ranges:
                ranges.append(ends)
            is_summed = not aggregation.where and aggregation.function in SUMMED
            is_summed = is_summed and sum_place(layout, aggregation) is not None
            key = (ranges.index(ends), aggregation.column, aggregation.where, is_summed)
            groups.setdefault(key, []).append(i)
        self.place(layout, ranges, dict(sorted(groups.items(), key=lambda item: item[0][0])), features)

    def __dealloc__(self):
        free(self.plan.ranges)
        free(self.plan.groups)
        free(self.plan.functions)
        free(self.plan.conditions)
        free(self.plan.constants)

    def place(self, RowLayout layout, list ranges, dict groups, list features):
        """Lay out what was grouped."""
        cdef WindowGroup* group
        cdef WindowFunction* function
        cdef FieldView* field
        cdef uint32_t f = 0
        cdef uint32_t c = 0
        wheres = {key[2]: None for key in groups}
        self.plan.ranges_count = len(ranges)
        self.plan.groups_count = len(groups)
        self.plan.ranges = <WindowRange*>cleared(len(ranges), sizeof(WindowRange))
        self.plan.groups = <WindowGroup*>cleared(len(groups), sizeof(WindowGroup))
        self.plan.functions = <WindowFunction*>cleared(len(features), sizeof(WindowFunction))
        self.plan.conditions = <Condition*>cleared(sum(len(where) for where in wheres), sizeof(Condition))
        self.plan.constants = <Constant*>cleared(sum(len(values_of(each)) for where in wheres for each in where),
                                                 sizeof(Constant))
        for i, (low, high) in enumerate(ranges):
            self.plan.ranges[i].low_us = low
            self.plan.ranges[i].high_us = high
        places = {}
        for where in wheres:
            places[where] = c
            for each in where:
                self.place_condition(layout, c, each)
                c += 1
        for g, ((range_, column, where, is_summed), members) in enumerate(groups.items()):
            group = &self.plan.groups[g]
            group.range = range_
            group.column = -1 if column is None else layout.names.index(column)
            group.sum = -1
            group.is_summed = is_summed
            if column is not None:
                field = &layout.fields[group.column]
                group.offset = field.offset
                group.width = field.width
                group.kind = field.kind
                group.is_nullable = field.nullable
                if is_summed:
                    group.sum = sum_place(layout, features[members[0]][0])
                    if not group.is_nullable and all(features[m][0].function == "count" for m in members):
                        group.sum = -1    # rows are counted sooner than values
            group.conditions_first = places[where]
            group.conditions_count = len(where)
            group.functions_first = f
            group.functions_count = len(members)
            for m in members:
                aggregation, _ = features[m]
                function = &self.plan.functions[f]
                function.field = m
                function.offset = self.layout.fields[m].offset
                function.function = FUNCTIONS.index(aggregation.function)
                function.n = aggregation.n or 0
                function.q = aggregation.q or 0.0
                f += 1

    def place_condition(self, RowLayout layout, uint32_t c, each):
        cdef Condition* condition = &self.plan.conditions[c]
        cdef Condition* before
        cdef Constant* constant
        cdef const uint8_t[::1] data
        column, operator, value = each
        condition.field = layout.names.index(column)
        condition.offset = layout.fields[condition.field].offset
        condition.kind = layout.fields[condition.field].kind
        operator, values = comparable(condition.kind, operator, value)
        condition.operator = OPERATORS.index(operator)
        if c > 0:
            before = &self.plan.conditions[c - 1]
            condition.constants_first = before.constants_first + before.constants_count
        for value in values:
            constant = &self.plan.constants[condition.constants_first + condition.constants_count]
            if condition.kind in (STRING, BYTES):
                encoded = value.encode() if isinstance(value, str) else value
                self.texts.append(encoded)
                constant.size = len(encoded)
                if encoded:
                    data = encoded
                    constant.data = &data[0]
            elif condition.kind in (FLOAT64, FLOAT32):
                constant.number = value
            else:
                whole_set(constant, value)
            condition.constants_count += 1


cdef int whole_set(Constant* constant, value) except -1:
    cdef uint64_t low = value & 0xFFFFFFFFFFFFFFFF
    cdef int64_t high = value >> 64
    constant.whole = (<int128>high << 64) | <int128>low
    return 0


def values_of(condition):
    """The values that a condition compares with."""
    _, operator, value = condition
    return value if operator in ("in", "not in") else (value,)


def comparable(uint8_t kind, operator, value):
    """(operator, values) that mean the same, each value one that a column of this kind could hold.

    A number is compared by its value, however it was written: of an int64 column `< 2.5` is `<= 2`, and no float64 is
    equal to 2**53 + 1.
    """
    if kind in (STRING, BYTES):
        return operator, values_of((None, operator, value))
    hold = held_by_float if kind in (FLOAT64, FLOAT32) else held_by_int
    if operator in ("==", "!=", "in", "not in"):
        near = [(each, hold(each)) for each in values_of((None, operator, value))]
        return {"==": "in", "!=": "not in"}.get(operator, operator), [held for each, held in near if held == each]
    held = hold(value)
    if held < value and operator in ("<", ">="):      # between the two lies nothing that the column could hold
        operator = {"<": "<=", ">=": ">"}[operator]
    elif held > value and operator in ("<=", ">"):
        operator = {"<=": "<", ">": ">="}[operator]
    return operator, (held,)


def held_by_float(value):
    """The float64 at or next to the value."""
    try:
        return float(value)
    except OverflowError:
        return HUGE_VAL if value > 0 else -HUGE_VAL


def held_by_int(value):
    """The integer at or next to the value, no further out than just beyond every column's range."""
    return int(max(-WHOLE_FAR, min(value, WHOLE_FAR)))


def range_of(aggregation):
    """(low, high): the window's event times lie in [T + low, T + high]."""
    low = -min(aggregation.window_us + aggregation.delay_us, DURATION_MAX_US)
    high = -min(aggregation.delay_us, DURATION_MAX_US)
    if aggregation.closed in ("right", "neither"):
        low += 1
    if aggregation.closed in ("left", "neither"):
        high -= 1
    return low, high


cdef object sum_place(RowLayout layout, aggregation):
    """The place of the aggregation's column among those that tiles sum; -1: rows are counted; None: it has none."""
    cdef uint32_t i
    cdef uint32_t field
    if aggregation.column is None:
        return -1
    field = layout.names.index(aggregation.column)
    if layout.fields[field].kind > FLOAT64:
        return -1 if aggregation.function == "count" and not layout.fields[field].nullable else None
    return sum(1 for i in range(field) if layout.fields[i].kind <= FLOAT64)
