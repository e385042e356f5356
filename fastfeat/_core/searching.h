/* Searches of many hashes at once, as far as the cache line goes in which each begins. See index.pyx. */
#ifndef FASTFEAT_SEARCHING_H
#define FASTFEAT_SEARCHING_H

#include <stdint.h>

#include "atomics.h"
#include "vectors.h"

/* What is the same for all: the words of a table's shards and where their slots may lie, and what of a block is asked
   for when it is found. */
typedef struct SearchPlan {
    const uint8_t *base;
    const uint64_t *words;
    uint32_t shift;        /* (hash >> 1) >> shift is a hash's shard */
    uint64_t end;          /* bytes from base */
    uint64_t fetch_offset; /* of the block's bytes that are asked for */
    uint64_t fetch_size;
} SearchPlan;

/* Where the cache line begins in which a search for this hash begins, in the slots that `word` names. */
static inline uint64_t slot_line(uint64_t word, uint64_t hash) {
    uint64_t mask = ((uint64_t)1 << (word & 63)) - 1;
    return (word & ~(uint64_t)63) + (hash & mask & ~(uint64_t)3) * 16;
}

FF_PREFETCHES block_fetch(const SearchPlan *plan, uint64_t block_at) {
    prefetch_far((uintptr_t)plan->base + block_at + plan->fetch_offset, plan->fetch_size);
}

/* The four slots of a line: bit 2 i of `same` where slot i has this hash, of `empty` where it has none. A hint: what is
   taken from a slot is loaded as ever, one word after the other. */
typedef struct LineMatch {
    unsigned same, empty;
} LineMatch;

static inline __attribute__((always_inline)) LineMatch ff_match(const uint64_t *line, uint64_t hash) {
    LineMatch match = {0, 0};
    for (int i = 0; i < 8; i += 2) {
        uint64_t found = atomic_load_u64(line + i);
        match.same |= (unsigned)(found == hash) << i;
        match.empty |= (unsigned)(found == 0) << i;
    }
    return match;
}

#ifdef FF_HAS_WIDER
FF_256 static inline __attribute__((always_inline)) unsigned ff_lanes_256(const uint64_t *line, __m256i asked) {
    __m256i low = _mm256_cmpeq_epi64(_mm256_load_si256((const __m256i *)line), asked);
    __m256i high = _mm256_cmpeq_epi64(_mm256_load_si256((const __m256i *)(line + 4)), asked);
    return ((unsigned)_mm256_movemask_pd(_mm256_castsi256_pd(low)) |
            (unsigned)_mm256_movemask_pd(_mm256_castsi256_pd(high)) << 4) & 0x55;
}

FF_256 static inline __attribute__((always_inline)) LineMatch ff_match_256(const uint64_t *line, uint64_t hash) {
    return (LineMatch){ff_lanes_256(line, _mm256_set1_epi64x((long long)hash)),
                       ff_lanes_256(line, _mm256_setzero_si256())};
}

FF_512 static inline __attribute__((always_inline)) LineMatch ff_match_512(const uint64_t *line, uint64_t hash) {
    __m512i found = _mm512_load_si512(line);
    return (LineMatch){_mm512_mask_cmpeq_epi64_mask(0x55, found, _mm512_set1_epi64((long long)hash)),
                       _mm512_mask_cmpeq_epi64_mask(0x55, found, _mm512_setzero_si512())};
}
#endif

/* blocks_at[i]: where the block of hashes[i] lies, not yet looked at, its bytes on their way; or 0. Searches that go on
   behind their first line are listed in `later`, and that line is asked for: their number. So are those whose first
   line lies behind `end`, which was loaded before their shard's word was: slots that came in between lie there too. */
#define FF_LINES_SEARCH(name, match_line, attributes) \
    attributes static int64_t name(const SearchPlan *plan, const uint64_t *hashes, int64_t count, \
                                   uint64_t *blocks_at, uint8_t *later) { \
        const SearchPlan p = *plan; \
        int64_t waiting = 0; \
        for (int64_t i = 0; i < count; i++) { \
            uint64_t at = slot_line(atomic_load_u64(&p.words[hashes[i] >> 1 >> p.shift]), hashes[i]); \
            uint64_t block_at = 0; \
            LineMatch match = {0, 0}; \
            if (at <= p.end - 64) { /* whatever the word was: of it only this line is looked at */ \
                const uint64_t *line = (const uint64_t *)(p.base + at); \
                match = match_line(line, hashes[i]); \
                if (match.same) block_at = atomic_load_u64(line + __builtin_ctz(match.same) + 1); \
            } \
            if (block_at) { \
                block_fetch(&p, block_at); \
            } else if (match.same || !match.empty) { \
                prefetch(p.base + at + 64); \
                later[waiting++] = (uint8_t)i; \
            } \
            blocks_at[i] = block_at; \
        } \
        return waiting; \
    }

FF_LINES_SEARCH(ff_lines_search, ff_match, )
#ifdef FF_HAS_WIDER
FF_LINES_SEARCH(ff_lines_search_256, ff_match_256, FF_256)
FF_LINES_SEARCH(ff_lines_search_512, ff_match_512, FF_512)
#endif
FF_CHOOSE_WIDEST(ff_lines_search)

static inline int search_bits(void) { return ff_lines_search_bits(); }

static inline int64_t lines_search(const SearchPlan *plan, const uint64_t *hashes, int64_t count, uint64_t *blocks_at,
                                   uint8_t *later) {
    return ff_lines_search_widest(plan, hashes, count, blocks_at, later);
}

#endif
