from libc.stdint cimport int64_t, uint32_t, uint64_t

from .builder cimport Entity, RowRef
from .status cimport Status


cdef void entity_begin(Entity* entity) noexcept nogil
cdef Status entity_prepare(Entity* entity, RowRef* fresh, uint32_t count) noexcept nogil
cdef Status entity_replace(
    Entity* entity, RowRef* fresh, uint32_t count, uint64_t* replaced, uint32_t replaced_count
) noexcept nogil
cdef Status entity_delete(Entity* entity, int64_t deleted_us) noexcept nogil
cdef Status entity_remember(Entity* entity, const int64_t* given) noexcept nogil
