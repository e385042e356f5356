/* The few atomic operations of the core, over the compiler's builtins. */
#ifndef FASTFEAT_ATOMICS_H
#define FASTFEAT_ATOMICS_H

#include <stdint.h>
#include <string.h>

#ifdef __SANITIZE_THREAD__
#include <stdlib.h>
/* A race for ThreadSanitizer to find, so that `make tsan-test` shows that it would: FASTFEAT_SEEDED_BUG=plain_stores
   makes plain stores of release stores. Looked up when a module is loaded: at the first use it would be a race itself. */
static int ff_stores_are_plain;
__attribute__((constructor)) static void ff_seed_plain_stores(void) {
    const char *seeded = getenv("FASTFEAT_SEEDED_BUG");
    ff_stores_are_plain = seeded != NULL && strcmp(seeded, "plain_stores") == 0;
}
#else
#define ff_stores_are_plain 0
#endif

static inline uint64_t atomic_load_u64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void atomic_store_u64(uint64_t *p, uint64_t v) {
    if (ff_stores_are_plain) *p = v;
    else __atomic_store_n(p, v, __ATOMIC_RELEASE);
}
static inline uint32_t atomic_load_u32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void atomic_store_u32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline uint64_t atomic_add_u64(uint64_t *p, uint64_t v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }

/* Compare and swap with a full fence in both directions: true where *p was `expected` and is now `desired`. */
static inline int atomic_swap_u64(uint64_t *p, uint64_t expected, uint64_t desired) {
    return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
static inline int atomic_swap_u32(uint32_t *p, uint32_t expected, uint32_t desired) {
    return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
static inline uint64_t atomic_exchange_u64(uint64_t *p, uint64_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
static inline void atomic_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Loads of bytes that may be anything and may change meanwhile: each happens once, and the compiler can't look again
   after a check. The addresses of all but the 16-bit one may be misaligned. */
static inline uint32_t load_once_u16(const uint16_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint32_t load_once_u32(const void *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    __asm__("" : "+r"(v));
    return v;
}
static inline uint64_t load_once_u64(const void *p) {
    uint64_t v;
    memcpy(&v, p, sizeof v);
    __asm__("" : "+r"(v));
    return v;
}
static inline void copy_once(void *to, const void *from, size_t size) {
    memcpy(to, from, size);
    __asm__ __volatile__("" ::: "memory");
}

#define ff_unlikely(condition) __builtin_expect(!!(condition), 0)

/* Why always inlined: to the compiler a function that only prefetches does nothing, and it leaves out the call. */
#define FF_PREFETCHES static inline __attribute__((always_inline)) void
FF_PREFETCHES prefetch(const void *p) { __builtin_prefetch(p, 0, 3); }

/* The lines of `size` bytes into the second level of the cache: of many entities at once the first can't hold them.
   They may lie anywhere. */
FF_PREFETCHES prefetch_far(uintptr_t start, uint64_t size) {
    uint64_t lines = ((start & 63) + size + 63) / 64;
#pragma GCC unroll 4
    for (uint64_t i = 0; i < lines; i++) __builtin_prefetch((const void *)(start + 64 * i), 0, 2);
}

#endif
