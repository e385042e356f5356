/* How wide the processor's vectors are: 512, 256 or 128 bits.

   FASTFEAT_VECTOR_BITS in the environment makes them narrower, when the modules are loaded: for tests, and for machines
   that are slow at their widest. */
#ifndef FASTFEAT_VECTORS_H
#define FASTFEAT_VECTORS_H

#include <stdlib.h>

static inline int ff_vector_bits(void) {
    const char *given = getenv("FASTFEAT_VECTOR_BITS");
    int most = given == NULL ? 512 : atoi(given);
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (most >= 512 && __builtin_cpu_supports("avx512f")) return 512;
    if (most >= 256 && __builtin_cpu_supports("avx2")) return 256;
#endif
    (void)most;
    return 128;
}

#endif
