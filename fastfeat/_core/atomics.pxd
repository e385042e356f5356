from libc.stdint cimport uint16_t, uint32_t, uint64_t


cdef extern from "atomics.h" nogil:
    uint64_t atomic_load_u64(const uint64_t* p) noexcept
    void atomic_store_u64(uint64_t* p, uint64_t v) noexcept
    uint32_t atomic_load_u32(const uint32_t* p) noexcept
    void atomic_store_u32(uint32_t* p, uint32_t v) noexcept
    uint64_t atomic_add_u64(uint64_t* p, uint64_t v) noexcept
    int atomic_swap_u64(uint64_t* p, uint64_t expected, uint64_t desired) noexcept
    int atomic_swap_u32(uint32_t* p, uint32_t expected, uint32_t desired) noexcept
    uint64_t atomic_exchange_u64(uint64_t* p, uint64_t v) noexcept
    void atomic_fence() noexcept
    void cpu_relax() noexcept
    uint32_t load_once_u16(const uint16_t* p) noexcept
    uint32_t load_once_u32(const void* p) noexcept
    uint64_t load_once_u64(const void* p) noexcept
    void copy_once(void* to, const void* source, size_t size) noexcept
    bint ff_unlikely(bint condition) noexcept
    void prefetch(const void* p) noexcept
    void prefetch_far(uint64_t start, uint64_t size) noexcept


cdef extern from "checks.h" nogil:
    const bint FF_IS_DEBUG
    void ff_check(bint condition) noexcept
    bint ff_seeded_bug(const char* name) noexcept
    void ff_poison(void* at, size_t size) noexcept
