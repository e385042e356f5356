"""Ownership: a place outside of a store's directory belongs to one store, and is for one thing.

    DIRECTORY/ID          a random name, given when the store first has such a place
    PLACE/owner.json      {"store": that name, "holds": "history"}

Why: names in a place are numbers that each store counts by itself. Two that share one would write over each other's
     files and answer with each other's rows, and the lock of a directory says nothing about what lies elsewhere.
Promise: a place that was claimed is opened by no other store, nor for another thing; one that nobody claimed is taken.
         (Two stores that take one at the same instant may both believe that it is theirs, until the next start.)
Errors:  StorageError.
"""

from __future__ import annotations

import json
import os
import secrets

from .errors import StorageError
from .files import Files, write_file
from .places import Place, storage_faults

ID = "ID"
OWNER = "owner.json"


def name_of_store(files: Files, directory: str, *, read_only: bool) -> str:
    """The name that this directory goes by; it gets one where it has none and may be written to."""
    path = os.path.join(directory, ID)
    with storage_faults("read or make", path, "look at the disk and the directory's owner"):
        if files.exists(path):
            return bytes(files.read(path)).decode(errors="replace")
        name = secrets.token_hex(16)
        if not read_only:
            write_file(files, path, name.encode())
        return name


def claim(place: Place, store: str, holds: str, *, read_only: bool) -> None:
    """Take a place that is nobody's. Raises StorageError where it is somebody else's."""
    mine = {"store": store, "holds": holds}
    try:
        said = json.loads(bytes(place.read(OWNER)))
    except FileNotFoundError:
        if not read_only:
            place.write(OWNER, json.dumps(mine).encode())
        return
    except ValueError as error:
        said = error
    if said != mine:
        raise StorageError(
            f"{place.where}: {OWNER} there says {said}, and this is the {holds} of store {store}; give each store"
            f" places of its own, or remove {OWNER} if that other store is gone and its files with it"
        )
