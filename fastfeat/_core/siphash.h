/* SipHash-1-3 of one integer, of many at once, and of bytes, by a secret seed of two words; never 0.

   Many at once: the compiler makes vectors of the plain loop. Every width of them gives the same hashes.
   Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012. */
#ifndef FASTFEAT_SIPHASH_H
#define FASTFEAT_SIPHASH_H

#include <stdint.h>
#include <string.h>

#include "vectors.h"

#define FF_ROTATE(x, by) ((x) << (by) | (x) >> (64 - (by)))

#define FF_SIP_BEGIN(seed) \
    uint64_t v0 = (seed)[0] ^ 0x736F6D6570736575u, v1 = (seed)[1] ^ 0x646F72616E646F6Du; \
    uint64_t v2 = (seed)[0] ^ 0x6C7967656E657261u, v3 = (seed)[1] ^ 0x7465646279746573u

#define FF_SIP_ROUND \
    do { \
        v0 += v1; \
        v1 = FF_ROTATE(v1, 13) ^ v0; \
        v0 = FF_ROTATE(v0, 32); \
        v2 += v3; \
        v3 = FF_ROTATE(v3, 16) ^ v2; \
        v0 += v3; \
        v3 = FF_ROTATE(v3, 21) ^ v0; \
        v2 += v1; \
        v1 = FF_ROTATE(v1, 17) ^ v2; \
        v2 = FF_ROTATE(v2, 32); \
    } while (0)

#define FF_SIP_TAKE(word) \
    do { \
        v3 ^= (word); \
        FF_SIP_ROUND; \
        v0 ^= (word); \
    } while (0)

#define FF_SIP_END(hash) \
    do { \
        v2 ^= 0xFF; \
        FF_SIP_ROUND; \
        FF_SIP_ROUND; \
        FF_SIP_ROUND; \
        hash = v0 ^ v1 ^ v2 ^ v3; \
        hash = hash ? hash : 1; \
    } while (0)

/* Of the value's 8 little-endian bytes. */
static inline uint64_t hash_u64(const uint64_t *seed, uint64_t value) {
    uint64_t hash;
    FF_SIP_BEGIN(seed);
    FF_SIP_TAKE(value);
    FF_SIP_TAKE((uint64_t)8 << 56);
    FF_SIP_END(hash);
    return hash;
}

static inline uint64_t hash_bytes(const uint64_t *seed, const uint8_t *data, uint64_t size) {
    uint64_t hash, word, i, whole = size & ~(uint64_t)7;
    FF_SIP_BEGIN(seed);
    for (i = 0; i < whole; i += 8) {
        memcpy(&word, data + i, 8);
        FF_SIP_TAKE(word);
    }
    word = size << 56;
    for (; i < size; i++)
        word |= (uint64_t)data[i] << (8 * (i & 7));
    FF_SIP_TAKE(word);
    FF_SIP_END(hash);
    return hash;
}

#define FF_HASH_EACH(name, attributes) \
    attributes static void name(const uint64_t *seed, const uint64_t *restrict values, int64_t count, \
                                uint64_t *restrict hashes) { \
        for (int64_t i = 0; i < count; i++) \
            hashes[i] = hash_u64(seed, values[i]); \
    }

FF_HASH_EACH(ff_hash_each, )
#ifdef FF_HAS_WIDER
FF_HASH_EACH(ff_hash_each_256, FF_256)
FF_HASH_EACH(ff_hash_each_512, FF_512)
#endif
FF_CHOOSE_WIDEST(ff_hash_each)

static inline int hash_bits(void) { return ff_hash_each_bits(); }

/* hashes[i] = hash_u64(seed, values[i]); the two do not overlap. */
static inline void hash_u64s(const uint64_t *seed, const uint64_t *values, int64_t count, uint64_t *hashes) {
    ff_hash_each_widest(seed, values, count, hashes);
}

#endif
