"""Why a connection is not read."""

from __future__ import annotations

from enum import IntFlag


class Pause(IntFlag):
    NONE = 0
    WRITING = 1  # the peer does not take what it asked for
    LOADING = 2  # chunks of a LOAD wait for the store
    STOPPING = 4
    STORING = 8  # many writes wait for the store
    THREADS = 16  # many answers are being made by threads
    PASSING = 32  # the writer process does not take what is passed on to it
    WAITING = 64  # for a write to become visible
