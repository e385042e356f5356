"""Load rows flat out through a server until stopped: python -m benchmarks.loader PORT ENTITIES.

Prints one line once the first load is in, so that who measures knows that the rows are coming.
"""

from __future__ import annotations

import itertools
import json
import sys

import fastfeat

from . import data


def load_for_ever(port: int, entities: int) -> None:
    keys, values = next(data.chunks(entities))
    with fastfeat.connect(f"fastfeat://127.0.0.1:{port}") as client:
        for turn in itertools.count(1):
            client.load(data.VIEW, data.record_batch(keys, values, data.EVENT_TIME_US + turn))
            if turn == 1:
                print(json.dumps({"port": port}), flush=True)


if __name__ == "__main__":
    load_for_ever(int(sys.argv[1]), int(sys.argv[2]))
