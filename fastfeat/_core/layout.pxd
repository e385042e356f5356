from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    PAGE_SIZE = 4096
    READER_SLOTS = 1024
    WRITER_SLOTS = 128        # the first ones are the writing process's own
    SIZE_CLASSES = 153        # see arena.pyx, heap_class
    SHARDS_MAX = 64
    BLOCK_HEADER_SIZE = 16
    HEAD_AT_SIZE = 8          # its first word, which a block of one row does without
    STAMP_SIZE = 24           # event_time, created_time, sequence of one row

cdef extern from *:
    """
    #define FASTFEAT_MAGIC 0x5441454654534146ULL /* "FASTFEAT" read as little-endian bytes */
    #define FASTFEAT_NEVER INT64_MIN
    #define FASTFEAT_EVER INT64_MAX
    """
    const uint64_t MAGIC "FASTFEAT_MAGIC"
    const int64_t NEVER "FASTFEAT_NEVER"
    const int64_t EVER "FASTFEAT_EVER"

cdef struct ReaderSlot:       # one cache line
    uint64_t pinned           # epoch of the reader inside, 0: free
    uint64_t reserved[7]

cdef struct ReaderTable:
    uint64_t magic
    uint64_t generation       # of the arena that these slots guard
    uint32_t high             # one past the greatest slot ever claimed
    uint32_t pad
    uint64_t line[5]
    ReaderSlot slots[READER_SLOTS]

cdef struct ArenaHeader:
    uint64_t magic
    uint32_t layout_version
    uint32_t endian           # 1, written natively
    uint64_t reserved
    uint64_t capacity         # bytes of the mapping
    uint64_t seed[2]          # key of the hash
    uint64_t generation
    uint32_t is_clean         # 1: a writer let go of it in order and may take it up again
    uint32_t lock             # guards the five fields below
    uint64_t bump             # first byte never handed out
    uint64_t free_at          # first free extent, in address order
    uint64_t used             # bytes handed out
    uint64_t reserve          # bytes that only deletes may use
    uint64_t backed           # bytes that the system has given pages to; = capacity of a private arena
    uint64_t line[3]
    uint64_t epoch            # alone in its cache line
    uint64_t line_epoch[7]
    uint64_t superseded       # the generation that took this one's place or will, 0: none
    uint64_t catalogue        # offset of {size u64, digest u64, bytes} and, above its 46 bits, a number; 0: none
    uint64_t position         # writes before it are visible
    uint64_t line_readers[5]

cdef struct FreeExtent:       # lies in the first bytes of a free extent
    uint64_t next_at
    uint64_t size

cdef struct HeapHeader:       # the allocator of one shard
    uint64_t span_at
    uint64_t span_end
    uint64_t span_size
    uint64_t mask[3]          # bit c: free[c] is not empty
    uint64_t free[SIZE_CLASSES]

cdef struct ShardHeader:
    uint64_t entities         # slots taken, deleted entities included
    uint64_t live             # entities with rows
    uint64_t rows
    HeapHeader heap

cdef struct TableHeader:
    uint64_t slots[SHARDS_MAX]     # offset of a shard's slots | log2 of their count
    uint64_t shard_bits
    uint64_t line[7]
    ShardHeader shards[SHARDS_MAX]

cdef struct Slot:
    uint64_t hash             # 0: empty
    uint64_t block_at         # 0: claimed, nothing published yet

cdef struct BlockHeader:      # its fields are timeline.pxd's: shape_count, ..., block_head_at
    uint64_t head_at          # TimelineHead, 0 where there is none; of one row: not the block's own
    uint64_t shape            # see layout.pyx

cdef struct DirectoryEntry:
    int64_t first_event
    uint64_t block_at

cdef struct TimelineHead:     # immutable once published
    uint64_t directory_at     # DirectoryEntry[directory_capacity], older blocks in order
    uint32_t directory_first  # entries before it are dropped
    uint32_t directory_count  # one past the last entry of this head
    uint32_t directory_capacity
    uint32_t has_dropped
    int64_t deleted_us        # created time of the last delete, NEVER where there was none
    int64_t dropped_min_event
    int64_t dropped_min_created
    int64_t dropped_max_created
    int64_t dropped_last_event     # the greatest dropped row in the order
    int64_t dropped_last_created
