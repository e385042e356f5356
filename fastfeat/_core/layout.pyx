"""Every struct of the arena, drawn byte by byte, and the check that the compiler agrees.

    ArenaHeader                        at 0, 8,384 B
      0  magic u64 | 8 layout u32, endian u32 | 16 schema fingerprint | 24 capacity | 32 seed 2 x u64 | 48 generation
     56  is_clean u32, lock u32 | 64 bump | 72 free_at | 80 used | 88 reserve | 96 pad
    128  epoch | 136 pad | 192 readers: 128 slots of 64 B

    TableHeader                        one per view
      0  slots word per shard (64 x u64) | 512 shard_bits | 520 pad | 576 ShardHeader[64]
    Slot           16 B   hash u64 | block_at u64
    BlockHeader    16 B   head_at u64 | count u32 | capacity u16 | key_size u16
    Block                 BlockHeader | key, padded to 8 | event_time[capacity] | created_time[capacity] |
                          sequence[capacity] | row[capacity] (row_stride bytes each, see columns.pyx)
    DirectoryEntry 16 B   first_event i64 | block_at u64
    TimelineHead   72 B   directory_at | first, count, capacity, has_dropped u32 | deleted_us | dropped_* 5 x i64
    Row heap              size u64 | bytes that the row's variable cells point into

All offsets count from the arena's first byte. 0 is never a valid offset of anything but the header.
"""

from .atomics cimport FF_IS_DEBUG

LAYOUT_VERSION = 1
IS_DEBUG = bool(FF_IS_DEBUG)


def check_sizes():
    """Compare the structs with the drawing above; returns {name: bytes}. Raises AssertionError where they differ."""
    cdef dict sizes = {
        "ArenaHeader": sizeof(ArenaHeader),
        "Slot": sizeof(Slot),
        "BlockHeader": sizeof(BlockHeader),
        "DirectoryEntry": sizeof(DirectoryEntry),
        "TimelineHead": sizeof(TimelineHead),
        "ReaderSlot": sizeof(ReaderSlot),
    }
    drawn = {
        "ArenaHeader": 192 + 64 * READER_SLOTS,
        "Slot": 16,
        "BlockHeader": BLOCK_HEADER_SIZE,
        "DirectoryEntry": 16,
        "TimelineHead": 72,
        "ReaderSlot": 64,
    }
    if sizes != drawn:
        raise AssertionError(f"layout drifted from its drawing: {sizes} is not {drawn}")
    return sizes


check_sizes()
