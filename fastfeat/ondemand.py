"""On-demand features: NumPy functions of request fields and of other features, computed when they are read.

    @on_demand_feature_view(
        request=[Field("transaction_time", "timestamp")],
        schema=[Field("is_night_time_transaction", "bool")],
    )
    def transaction_checks(inputs):
        hour = inputs["transaction_time"] // 3_600_000_000 % 24
        return {"is_night_time_transaction": (hour >= 22) | (hour < 6)}

    def ... --its source, without decorators--> text, hash --compiled with `np` alone--> function

Promise: what is stored is what runs: the function that anybody calls, here or after a restart, online or for training,
         is made of the text alone. So it can use its argument, Python's built-ins and `np`, and nothing around it.
Trust:   whoever can write a definition (a store's directory, a shared arena) can have Python run what they write.
Errors:  SchemaError when it is defined; what goes wrong in a call is DataError (computed.py).
"""

from __future__ import annotations
import __future__ as future

import ast
import builtins
import dis
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any, Final

import numpy as np

from .errors import SchemaError
from .naming import EVENT_TIMESTAMP, check_name
from .schema import FIELDS_MAX, Feature, Field, View, parse_features

Function = Callable[[Any], Any]

LIBRARY: Final = "np"  # the one name around a function that it may use
OPERATORS: Final = frozenset(
    {"BINARY_OP", "COMPARE_OP", "CONTAINS_OP", "IS_OP"}
    | {f"UNARY_{kind}" for kind in ("NEGATIVE", "NOT", "INVERT", "POSITIVE")}
)  # steps of Python's own machine
OF_PYTHON: Final = frozenset({"__name__", "__annotations__"})  # what every class body asks for, whatever it says
SOURCE_SIZE_MAX: Final = 1 << 16  # of a definition; what is larger is a program, and belongs elsewhere


@dataclass(frozen=True)
class OnDemandFeatureView(View):
    """Features that a function computes from request fields and other features, a whole batch at a time.

    inputs:  features that it reads: views (all their fields), `view["field"]` or "view:field", stored, windows or
             on-demand themselves.
    request: fields that come with the entities of a read. Field("event_timestamp", "timestamp") is the moment of the
             read itself, and does not.
    schema:  what it returns.
    source:  the text of the function, `def name(inputs): ...`.
    hash:    of the source: sha256, in hex.
    """

    name: str
    inputs: Sequence[Feature]
    request: Sequence[Field]
    schema: Sequence[Field]
    source: str
    description: str
    owner: str
    tags: Mapping[str, str]

    def __init__(
        self,
        name: str,
        inputs: Sequence[View | Feature | str] | View | Feature | str = (),
        request: Sequence[Field] = (),
        schema: Sequence[Field] = (),
        source: str = "",
        description: str = "",
        owner: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> None:
        check_name(name, "on-demand feature view")
        where = f"on-demand feature view {name!r}"
        is_read = not isinstance(inputs, Sequence) or len(inputs) > 0
        for key, value in {
            "name": name,
            "inputs": parse_features(inputs, f"{where}: inputs") if is_read else (),
            "request": checked_fields(request, f"{where}: request"),
            "schema": checked_fields(schema, f"{where}: schema"),
            "source": source,
            "description": description,
            "owner": owner,
            "tags": dict(tags or {}),
        }.items():
            object.__setattr__(self, key, value)
        self._check(where)
        object.__setattr__(self, "_function", compiled(source, where))
        object.__setattr__(self, "_names", input_names(self.inputs, self.request))

    def _check(self, where: str) -> None:
        if not self.schema:
            raise SchemaError(f"{where} needs a schema of one or more Field(name, dtype): what it returns")
        if not self.inputs and all(each.name == EVENT_TIMESTAMP for each in self.request):
            raise SchemaError(f"{where} needs inputs or request fields that come with each entity; else there are none")
        if any(each.view == self.name for each in self.inputs):
            raise SchemaError(f"{where} has a feature of its own among its inputs; a function can't wait for itself")
        if any(each.name == EVENT_TIMESTAMP for each in self.schema):
            raise SchemaError(f"{where}: schema: {EVENT_TIMESTAMP!r} is reserved for the moment of a read; rename it")
        names = {each.field for each in self.inputs}
        for each in self.request:
            if each.name in names:
                raise SchemaError(f"{where}: request field {each.name!r} has the name of an input; rename it")

    def __hash__(self) -> int:
        return hash((self.name, self.inputs, self.source))

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def names(self) -> Mapping[str, str]:
        """What the function calls its inputs -> "view:feature" or the request field's name."""
        names: Mapping[str, str] = self._names  # type: ignore[attr-defined]  # no field: it follows from the others
        return names

    @property
    def function(self) -> Function:
        """The function, made of `source`."""
        function: Function = self._function  # type: ignore[attr-defined]  # no field: two are alike by their source
        return function


def input_names(inputs: Sequence[Feature], request: Sequence[Field]) -> Mapping[str, str]:
    """What a function calls its inputs -> what they are: "age" -> "profile:age", "amount" -> "amount"."""
    fields = [each.field for each in inputs]
    names = {each.field if fields.count(each.field) == 1 else str(each): str(each) for each in inputs}
    return names | {each.name: each.name for each in request}


def on_demand_feature_view(
    *,
    inputs: Sequence[View | Feature | str] | View | Feature | str = (),
    request: Sequence[Field] = (),
    schema: Sequence[Field],
    description: str = "",
    owner: str = "",
    tags: Mapping[str, str] | None = None,
) -> Callable[[Function], OnDemandFeatureView]:
    """Make an OnDemandFeatureView of the function that follows, named as it is.

    The function is called with one mapping, name -> array with one value per entity, and returns a dict, field of
    the schema -> array. Source: docs/SEMANTICS.md, "On-demand features". Raises SchemaError.
    """

    def define(function: Function) -> OnDemandFeatureView:
        source = source_of(function)
        view = OnDemandFeatureView(
            function.__name__, inputs, request, schema, source, description=description, owner=owner, tags=tags
        )
        check_text(function, source)
        return view

    return define


def checked_fields(fields: Sequence[Field], where: str) -> tuple[Field, ...]:
    if isinstance(fields, Field) or not isinstance(fields, Sequence):
        raise SchemaError(f"{where} is a list of Field(name, dtype), not {type(fields).__name__}")
    if not all(isinstance(each, Field) for each in fields):
        raise SchemaError(f"{where} is a list of Field(name, dtype)")
    if len(fields) > FIELDS_MAX:
        raise SchemaError(f"{where} has {len(fields)} fields, at most {FIELDS_MAX}")
    names = [each.name for each in fields]
    for name in names:
        if names.count(name) > 1:
            raise SchemaError(f"{where} declares field {name!r} twice")
    return tuple(fields)


def source_of(function: object) -> str:
    """The text of a function as it was written, from `def` on. Raises SchemaError."""
    if not inspect.isfunction(function):
        raise SchemaError(f"an on-demand feature view is made of a function, not of {type(function).__name__}")
    where = f"on-demand feature view {function.__name__!r}"
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    known = cells[LIBRARY].cell_contents if LIBRARY in cells else function.__globals__.get(LIBRARY, np)
    if known is not np:
        raise SchemaError(f"{where}: where it is defined, {LIBRARY} is {known!r}; here it is NumPy: import numpy as np")
    try:
        text = textwrap.dedent(inspect.getsource(function))
        tree = ast.parse(text)
    except (OSError, SyntaxError):
        raise SchemaError(
            f"{where}: its source can't be read, and the source is the definition; write it in a file, as a plain def"
        ) from None
    found = tree.body[0]
    if not isinstance(found, ast.FunctionDef):
        raise SchemaError(f"{where} is no plain function; write it as def {function.__name__}(inputs): ...")
    lines = text.splitlines()[found.lineno - 1 : found.end_lineno]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def compiled(source: str, where: str) -> Function:
    """The function of this text, and of nothing else. Raises SchemaError."""
    if not isinstance(source, str) or not source.strip():
        raise SchemaError(f"{where} needs the source of its function; decorate one with @on_demand_feature_view(...)")
    if len(source) > SOURCE_SIZE_MAX:
        raise SchemaError(f"{where}: its source has {len(source)} characters, at most {SOURCE_SIZE_MAX}")
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise SchemaError(f"{where}: its source is not Python: {error}") from None
    check_shape(tree, where)
    # Annotations are not evaluated: they may name types that only the file has.
    flags = future.annotations.compiler_flag
    code = compile(source, f"<{where}>", "exec", flags=flags, dont_inherit=True)
    check_names(code, where)
    names: dict[str, Any] = {LIBRARY: np, "__builtins__": builtins, "__name__": __name__}
    exec(code, names)  # a def statement without decorators and defaults: nothing of the function runs
    function: Function = names[tree.body[0].name]  # type: ignore[attr-defined]  # check_shape: it is a def
    return function


def check_shape(tree: ast.Module, where: str) -> None:
    """Raises SchemaError: anything but one plain function of one argument."""
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        raise SchemaError(f"{where}: its source is not one plain function, def name(inputs): ...")
    found = tree.body[0]
    takes = found.args
    if found.decorator_list:
        raise SchemaError(f"{where}: other decorators would not be stored with it; keep only @on_demand_feature_view")
    if len(takes.args) + len(takes.posonlyargs) != 1 or takes.kwonlyargs or takes.vararg or takes.kwarg:
        raise SchemaError(f"{where} takes one argument, the inputs: def {found.name}(inputs)")
    if takes.defaults:
        raise SchemaError(f"{where}: its argument has a default; it is always given")
    if any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in ast.walk(found)):
        raise SchemaError(f"{where} yields; it returns a dict with a whole batch")


def check_names(code: CodeType, where: str) -> None:
    """Raises SchemaError: the function uses something around it, which its text does not hold."""
    (function,) = (each for each in code.co_consts if isinstance(each, CodeType))
    for inside in nested(function):
        for step in dis.get_instructions(inside):
            if step.opname.startswith("IMPORT"):
                raise SchemaError(f"{where} imports {step.argval!r}; it has {LIBRARY}, and nothing else")
            if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                raise SchemaError(f"{where} changes the global {step.argval!r}; it returns what it computes")
        for name in sorted(outer_names(inside) - OF_PYTHON):
            if name != LIBRARY and not hasattr(builtins, name):
                raise SchemaError(
                    f"{where} uses {name!r}, which is defined outside of it; its source is all that is kept: define"
                    f" it inside, or make it an input (NumPy is there as {LIBRARY})"
                )


def outer_names(code: CodeType) -> set[str]:
    """What a function's code, or a class body's, looks for outside of the function."""
    found = set()
    own: set[str] = set()  # of a class body, so far
    for step in dis.get_instructions(code):
        if step.opname == "STORE_NAME":
            own.add(step.argval)
        elif step.opname == "DELETE_NAME":
            own.discard(step.argval)
        elif step.opname == "LOAD_GLOBAL" or (step.opname == "LOAD_NAME" and step.argval not in own):
            found.add(step.argval)
    return found


def check_text(function: Function, source: str) -> None:
    """Raises SchemaError: the text, which is all that is kept, is not what the function does.

    Python finds a text by file and line: it may have been edited since, or be that of other code.
    """
    where = f"on-demand feature view {function.__name__!r}"
    codes = list(nested(function.__code__))
    for name in sorted({name for code in codes for name in outer_names(code)} - OF_PYTHON - {LIBRARY}):
        known = getattr(builtins, name, None)
        if known is not None and function.__globals__.get(name, known) is not known:
            raise SchemaError(
                f"{where}: where it is defined, {name} is {function.__globals__[name]!r}; here it is Python's own:"
                " define yours inside the function, by another name"
            )
    if not all(name.isidentifier() for code in codes for name in code.co_names):
        return  # pytest rewrote an assert in it, by names that no text can have: what it did can't be compared
    flags = function.__code__.co_flags & future.annotations.compiler_flag
    tree = ast.parse(source)
    has_docstring = ast.get_docstring(tree.body[0]) is not None  # type: ignore[arg-type]  # it is a def
    module = compile(tree, "<source>", "exec", flags=flags, dont_inherit=True)
    text = next((code for code in nested(module) if code.co_name == function.__code__.co_name), None)
    if text is None or marks(function.__code__, has_docstring) != marks(text, has_docstring):
        raise SchemaError(
            f"{where}: its source is not what it was made from, and the source is the definition; where the file was"
            " edited since, import it again; where an indented function has a string of several lines, move it out"
        )


def marks(code: CodeType, has_docstring: bool = False) -> list[Any]:
    """What a function's code has of its text alone: its names, operators and constants, and those of what is inside.

    Not all steps: the same text compiles to others in another file. Not what is inside by a name of its own, whose code
    holds where it was written. Not the docstring, which may be indented otherwise.
    """
    names = {*code.co_names, *code.co_varnames, *code.co_freevars, *code.co_cellvars}
    operators = [(step.opname, step.arg) for step in dis.get_instructions(code) if step.opname in OPERATORS]
    constants = [each for each in code.co_consts[has_docstring:] if not isinstance(each, CodeType)]
    values = [sorted(map(repr, each)) if isinstance(each, frozenset) else repr(each) for each in constants]
    inside = [each for each in code.co_consts if isinstance(each, CodeType) and not each.co_name.isidentifier()]
    return [names, code.co_argcount, operators, values, *map(marks, inside)]


def nested(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of all functions inside it."""
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from nested(each)
