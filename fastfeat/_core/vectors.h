/* Vectors: how wide the processor's are, 512, 256 or 128 bits, and which of a function's forms takes the widest.

   FASTFEAT_VECTOR_BITS in the environment makes them narrower, when the modules are loaded: for tests, and for machines
   that are slow at their widest. */
#ifndef FASTFEAT_VECTORS_H
#define FASTFEAT_VECTORS_H

#include <stdlib.h>

/* Not under ThreadSanitizer, which knows of no vector that may meet a store. */
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
#include <immintrin.h>
#define FF_HAS_WIDER 1 /* than 128 bits, on some machines */
#define FF_256 __attribute__((target("avx2")))
#define FF_512 __attribute__((target("avx512f")))
#endif

static inline int ff_vector_bits(void) {
    const char *given = getenv("FASTFEAT_VECTOR_BITS");
    int most = given == NULL ? 512 : atoi(given);
#ifdef FF_HAS_WIDER
    __builtin_cpu_init();
    if (most >= 512 && __builtin_cpu_supports("avx512f")) return 512;
    if (most >= 256 && __builtin_cpu_supports("avx2")) return 256;
#endif
    (void)most;
    return 128;
}

/* Of `name`, name_256 and name_512: name_widest is the one to call, name_bits() says which that is. Chosen when a
   module is loaded, before any thread may call it. */
#ifdef FF_HAS_WIDER
#define FF_CHOOSE_WIDEST(name) \
    static __typeof__(&name) name##_widest = name; \
    __attribute__((constructor)) static void name##_choose(void) { \
        if (ff_vector_bits() == 512) name##_widest = name##_512; \
        else if (ff_vector_bits() == 256) name##_widest = name##_256; \
    } \
    static inline int name##_bits(void) { \
        return name##_widest == name##_512 ? 512 : name##_widest == name##_256 ? 256 : 128; \
    }
#else
#define FF_CHOOSE_WIDEST(name) \
    static __typeof__(&name) name##_widest = name; \
    static inline int name##_bits(void) { return 128; }
#endif

#endif
