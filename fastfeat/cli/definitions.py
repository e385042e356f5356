"""Definitions from a Python file or module: every Entity, view and FeatureService at its top level."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from fastfeat.definitions import Definition
from fastfeat.errors import SchemaError
from fastfeat.schema import FeatureView


def load_definitions(target: str) -> list[Definition]:
    """The definitions of `target`, a path such as features.py or a module such as team.features, in the file's order.

    Raises SchemaError where there are none, FileNotFoundError, or whatever the file itself raises.
    """
    module = run_file(Path(target)) if target.endswith(".py") else importlib.import_module(target)
    found = [value for value in vars(module).values() if isinstance(value, Definition)]
    if not any(isinstance(value, FeatureView) for value in found):
        raise SchemaError(f"{target} defines no FeatureView at its top level; assign one to a name there")
    return found


def run_file(path: Path) -> ModuleType:
    """The module made by running the file, with its directory importable as for `python path`."""
    if not path.is_file():
        raise FileNotFoundError(f"no definitions at {path}; give a Python file or the dotted name of a module")
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
