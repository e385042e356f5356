cdef enum Status:
    OK = 0
    ARENA_FULL = 1
    NO_MEMORY = 2

# Statuses of a read: part of the wire format, equal to fastfeat.Status. BEFORE_HISTORY and TORN never leave the core:
# they raise. TORN: what was read can't be what a writer wrote.
cdef enum ReadStatus:
    PRESENT = 0
    NULL_VALUE = 1
    NOT_FOUND = 2
    EXPIRED = 3
    DELETED = 4
    BEFORE_HISTORY = 5
    TORN = 255

cdef int raise_for(Status status, object what) except -1
