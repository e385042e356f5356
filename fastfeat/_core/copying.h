/* Rows into the lines of a matrix, in vectors. Every width of them copies the same bytes.

   Why not memcpy: for a few hundred bytes, its call and its choice of a way take as long as the copy. Vectors between a
   line's first and last are stored where they are aligned in the matrix: a store across two cache lines takes twice as
   long. */
#ifndef FASTFEAT_COPYING_H
#define FASTFEAT_COPYING_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "vectors.h"

/* What of a row goes where: every row the same. */
typedef struct CopyPlan {
    uint64_t null_words;  /* u64 at the row's start, of which each bit is a null */
    uint64_t offset;      /* of what is copied */
    uint64_t size;
    uint64_t out_stride;  /* bytes of one line of the matrix */
} CopyPlan;

static inline __attribute__((always_inline)) int ff_is_whole(const uint8_t *row, uint64_t null_words) {
    if (row == NULL) return 0;
    for (uint64_t i = 0; i < null_words; i++) {
        uint64_t nulls;
        memcpy(&nulls, row + 8 * i, 8);
        if (nulls) return 0;
    }
    return 1;
}

/* Copy rows[i], rows[i + 1], ... each to its line of `out`, up to the first that is NULL or has a null: its number, or
   count. */
#define FF_COPY_WHOLE(name, width, attributes) \
    typedef uint64_t name##_vector __attribute__((vector_size(width), aligned(1), may_alias)); \
    attributes static int64_t name(const CopyPlan *plan, const uint8_t *const *rows, int64_t i, int64_t count, \
                                   uint8_t *out) { \
        const CopyPlan p = *plan; \
        for (out += (uint64_t)i * p.out_stride; i < count && ff_is_whole(rows[i], p.null_words); i++) { \
            const uint8_t *from = rows[i] + p.offset; \
            uint64_t at = 0; \
            if (p.size >= (width)) { \
                *(name##_vector *)out = *(const name##_vector *)from; \
                at = (width) - ((uintptr_t)out & ((width) - 1)); \
            } \
            _Pragma("GCC unroll 8") for (; at + (width) <= p.size; at += (width)) \
                *(name##_vector *)(out + at) = *(const name##_vector *)(from + at); \
            if (at < p.size && p.size >= (width)) \
                *(name##_vector *)(out + p.size - (width)) = *(const name##_vector *)(from + p.size - (width)); \
            else \
                memcpy(out + at, from + at, p.size - at); \
            out += p.out_stride; \
        } \
        return i; \
    }

FF_COPY_WHOLE(ff_copy_whole, 16, )
#ifdef FF_HAS_WIDER
FF_COPY_WHOLE(ff_copy_whole_256, 32, FF_256)
FF_COPY_WHOLE(ff_copy_whole_512, 64, FF_512)
#endif
FF_CHOOSE_WIDEST(ff_copy_whole)

static inline int copy_bits(void) { return ff_copy_whole_bits(); }

static inline int64_t copy_whole(const CopyPlan *plan, const uint8_t *const *rows, int64_t i, int64_t count,
                                 uint8_t *out) {
    return ff_copy_whole_widest(plan, rows, i, count, out);
}

#endif
