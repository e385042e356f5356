"""Every struct of the arena, drawn byte by byte, and the check that the compiler agrees.

    ArenaHeader   256 B   at 0, alone in its page
      0  magic u64 | 8 layout u32, endian u32 | 16 reserved | 24 capacity | 32 seed 2 x u64 | 48 generation
     56  is_clean u32, lock u32 | 64 bump | 72 free_at | 80 used | 88 reserve | 96 backed | 104 pad
    128  epoch | 136 pad | 192 superseded | 200 catalogue | 208 position | 216 pad

    ReaderTable           memory or a file of its own, as its writers may not write the arena
      0  magic u64 | 8 generation | 16 high u32, pad u32 | 24 pad | 64 ReaderSlot[1024], 64 B each

    TableHeader                        one per view
      0  slots word per shard (64 x u64) | 512 shard_bits | 520 pad | 576 ShardHeader[64]
    Slot           16 B   hash u64 | block_at u64
    BlockHeader    16 B   head_at u64 | 0 u16 | count u16 | capacity u16 | key_size u16
                          of a block with room for one row 8 B: head_at + 1 u48 | key_size u16; its offset is that of
                          the 8 B before, so that all behind lies where it lies in others
    Block                 BlockHeader | key, padded to 8 | event_time[capacity] | created_time[capacity] |
                          sequence[capacity] | row[capacity] (row_stride bytes each, see columns.pyx) | tiles
    Tiles                 of event views, where capacity >= 8; n = capacity / 8, c = columns of numbers:
                          created_max[n] i64 | anchor[c] i16, padded to 8 | {low u64, high i64}[c][n], see tiles.pyx
    DirectoryEntry 16 B   first_event i64 | block_at u64
    TimelineHead   72 B   directory_at | first, count, capacity, has_dropped u32 | deleted_us | dropped_* 5 x i64
    Row heap              size u64 | bytes that the row's variable cells point into

All offsets count from the arena's first byte. 0 is never a valid offset of anything but the header.
"""

from .atomics cimport FF_IS_DEBUG

LAYOUT_VERSION = 6
IS_DEBUG = bool(FF_IS_DEBUG)


def check_sizes():
    """Compare the structs with the drawing above; returns {name: bytes}. Raises AssertionError where they differ."""
    cdef dict sizes = {
        "ArenaHeader": sizeof(ArenaHeader),
        "ReaderTable": sizeof(ReaderTable),
        "Slot": sizeof(Slot),
        "BlockHeader": sizeof(BlockHeader),
        "DirectoryEntry": sizeof(DirectoryEntry),
        "TimelineHead": sizeof(TimelineHead),
        "ReaderSlot": sizeof(ReaderSlot),
    }
    drawn = {
        "ArenaHeader": 256,
        "ReaderTable": 64 + 64 * READER_SLOTS,
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
