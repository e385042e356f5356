"""Status codes of the core and the one place that turns them into exceptions."""

from ..errors import ArenaFull


cdef int raise_for(Status status, object what) except -1:
    """Raise what the status means; nothing for OK. `what` is the sentence that names view, limit and remedy."""
    if status == OK:
        return 0
    if status == ARENA_FULL:
        raise ArenaFull(what)
    raise MemoryError(what)
