"""The one table of types: name, width in a row, NumPy, Arrow and msgpack forms.

A type is written as its name: "int64", "string", "timestamp"; "vector<float32, 128>" is a fixed-size vector of numbers
stored inline; "list<string>" has any length. `DType.parse` reads them; `str(dtype)` writes them back.

    kind        row bytes            NumPy      Arrow               msgpack
    bool        1                    bool       bool                bool
    int8..64    1..8                 int8..64   int8..64            int
    uint8..64   1..8                 uint8..64  uint8..64           int
    float32/64  4, 8                 same       same                float 32 / float 64
    timestamp   8 (us since 1970)    int64      timestamp[us, UTC]  int (us)
    string      8 (offset, length)   object     string              str
    bytes       8 (offset, length)   object     binary              bin
    vector<>    n x element          element    fixed_size_list     array
    list<>      8 (offset, length)   object     list                array
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

# The numbers are part of the arena's layout and of the wire format: never reused, never renumbered.
KIND: Final[dict[str, int]] = {
    "bool": 0,
    "int8": 1,
    "int16": 2,
    "int32": 3,
    "int64": 4,
    "uint8": 5,
    "uint16": 6,
    "uint32": 7,
    "uint64": 8,
    "float32": 9,
    "float64": 10,
    "timestamp": 11,
    "string": 12,
    "bytes": 13,
    "vector": 14,
    "list": 15,
}

SCALAR_WIDTH: Final[dict[str, int]] = {
    "bool": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float32": 4,
    "float64": 8,
    "timestamp": 8,
}

VARIABLE_WIDTH: Final = 8  # (u32 offset, u32 length) into the record's heap
KEY_TYPES: Final = frozenset({"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "string"})
VECTOR_ELEMENTS: Final = frozenset(SCALAR_WIDTH) - {"bool", "timestamp"}
LIST_ELEMENTS: Final = frozenset(SCALAR_WIDTH) | {"string", "bytes"}
VECTOR_SIZE_MAX: Final = 16_384  # a vector lies inside its row, and a row must stay a small thing

_VECTOR = re.compile(r"vector<\s*(\w+)\s*,\s*(\d+)\s*>")
_LIST = re.compile(r"list<\s*(\w+)\s*>")


@dataclass(frozen=True, slots=True)
class DType:
    """One column type. `element` is set for vector and list, `size` (elements) for vector."""

    name: str
    element: str | None = None
    size: int = 0

    @staticmethod
    def parse(text: str | DType) -> DType:
        """Read a type's name. Raises ValueError that says what is allowed."""
        if isinstance(text, DType):
            return text
        if not isinstance(text, str):
            raise ValueError(f"a type is written as a string such as 'float64', not {type(text).__name__}")
        if text in SCALAR_WIDTH or text in ("string", "bytes"):
            return DType(text)
        if match := _VECTOR.fullmatch(text):
            element, size = match[1], int(match[2])
            if element not in VECTOR_ELEMENTS:
                raise ValueError(f"a vector holds numbers ({', '.join(sorted(VECTOR_ELEMENTS))}), not {element!r}")
            if not 1 <= size <= VECTOR_SIZE_MAX:
                raise ValueError(
                    f"a vector has 1 to {VECTOR_SIZE_MAX} elements, not {size}; longer ones go into a list"
                )
            return DType("vector", element, size)
        if match := _LIST.fullmatch(text):
            if match[1] not in LIST_ELEMENTS:
                raise ValueError(f"a list holds {', '.join(sorted(LIST_ELEMENTS))}, not {match[1]!r}")
            return DType("list", match[1])
        known = ", ".join([*SCALAR_WIDTH, "string", "bytes", "vector<float32, 128>", "list<int64>"])
        raise ValueError(f"unknown type {text!r}; write one of {known}")

    def __str__(self) -> str:
        if self.name == "vector":
            return f"vector<{self.element}, {self.size}>"
        if self.name == "list":
            return f"list<{self.element}>"
        return self.name

    @property
    def kind(self) -> int:
        """The type's number in the arena and on the wire."""
        return KIND[self.name]

    @property
    def element_kind(self) -> int:
        """The element's number for vector and list, the type's own otherwise."""
        return KIND[self.element] if self.element else KIND[self.name]

    @property
    def width(self) -> int:
        """Bytes of one cell inside a row."""
        if self.name == "vector":
            assert self.element is not None
            return SCALAR_WIDTH[self.element] * self.size
        return SCALAR_WIDTH.get(self.name, VARIABLE_WIDTH)

    @property
    def is_scalar_number(self) -> bool:
        """True where a float64 matrix can hold the value (bool and timestamp included)."""
        return self.name in SCALAR_WIDTH

    @property
    def is_variable(self) -> bool:
        """True where the cell points into the record's heap."""
        return self.name in ("string", "bytes", "list")

    @property
    def matrix_columns(self) -> int:
        """Columns of a float64 matrix that the value fills: 1, a vector's size, or 0 where it can't."""
        if self.name == "vector":
            return self.size
        return 1 if self.is_scalar_number else 0

    @property
    def numpy(self) -> str:
        """NumPy's name of the stored form (of a vector's or list's element); "object" for text and bytes."""
        name = self.element or self.name
        return {"timestamp": "int64", "string": "object", "bytes": "object"}.get(name, name)

    def arrow(self) -> Any:
        """The canonical pyarrow.DataType. Imports pyarrow, which whoever only reads values does not need."""
        import pyarrow as pa

        if self.element is not None:
            element = DType(self.element).arrow()
            return pa.list_(element, self.size) if self.name == "vector" else pa.list_(element)
        if self.name == "timestamp":
            return pa.timestamp("us", "UTC")
        return {"string": pa.string(), "bytes": pa.binary(), "bool": pa.bool_()}.get(self.name) or pa.type_for_alias(
            self.name
        )
