/* Rows into the lines of a matrix, in vectors. Every width of them copies the same bytes.

   Why not memcpy: for a few hundred bytes, its call and its choice of a way take as long as the copy. */
#ifndef FASTFEAT_COPYING_H
#define FASTFEAT_COPYING_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "vectors.h"

enum { FF_LINE = 64, FF_AHEAD = 8 /* rows that come nearer, into the first-level cache, while one is copied */ };

/* What of a row goes where: every row the same. */
typedef struct CopyPlan {
    uint64_t lines;       /* cache lines that are read of a row */
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
            if (i + FF_AHEAD < count && rows[i + FF_AHEAD] != NULL) \
                _Pragma("GCC unroll 4") for (uint64_t line = 0; line < p.lines; line++) \
                    __builtin_prefetch(rows[i + FF_AHEAD] + FF_LINE * line, 0, 3); \
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
#if defined(__x86_64__)
FF_COPY_WHOLE(ff_copy_whole_256, 32, __attribute__((target("avx2"))))
FF_COPY_WHOLE(ff_copy_whole_512, 64, __attribute__((target("avx512f"))))
#endif

static int64_t (*ff_copy_whole_widest)(const CopyPlan *, const uint8_t *const *, int64_t, int64_t, uint8_t *) =
    ff_copy_whole;

/* When a module is loaded: before any thread may copy. */
__attribute__((constructor)) static void ff_copy_choose(void) {
#if defined(__x86_64__)
    if (ff_vector_bits() == 512) ff_copy_whole_widest = ff_copy_whole_512;
    else if (ff_vector_bits() == 256) ff_copy_whole_widest = ff_copy_whole_256;
#endif
}

/* Of the vectors that copy_whole takes. */
static inline int copy_bits(void) {
#if defined(__x86_64__)
    if (ff_copy_whole_widest == ff_copy_whole_512) return 512;
    if (ff_copy_whole_widest == ff_copy_whole_256) return 256;
#endif
    return 128;
}

static inline int64_t copy_whole(const CopyPlan *plan, const uint8_t *const *rows, int64_t i, int64_t count,
                                 uint8_t *out) {
    return ff_copy_whole_widest(plan, rows, i, count, out);
}

#endif
