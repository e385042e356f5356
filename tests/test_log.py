"""The log: the promised is found after any crash, damage is told from a torn tail, a failing disk is not trusted."""

from __future__ import annotations

import errno
import os
import random
import struct
from pathlib import Path

import pytest
from crc32c import crc32c

from fastfeat.errors import DiskFull, LogCorrupt, LogFailed, ReadOnly, StorageError
from fastfeat.files import Files
from fastfeat.log import FRAME_SIZE, HEAD_SIZE, Log, Segment, find_promise, last_written
from tests.faulty_files import ROOT, FaultyFiles
from tests.log_trials import (
    DIRECTORY,
    Expected,
    act,
    crash_everywhere,
    flip_everything,
    misplace_everything,
    opens_with,
    recovered,
    run,
    sample,
    survive_failures,
)

CODES = [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EINTR]


def small(disk: Files, *, segment_size: int = 1024, required: int = 0, read_only: bool = False) -> Log:
    return Log.open(disk, DIRECTORY, segment_size=segment_size, required=required, read_only=read_only)


def payloads(log: Log) -> list[bytes]:
    return [bytes(record.payload) for record in log.records(log.start)]


def written(disk: Files, *records: bytes) -> Log:
    log = small(disk)
    for record in records:
        log.append(1, [record])
        log.sync()
    return log


# --- the promise


@pytest.mark.parametrize("seed", range(4))
def test_after_a_crash_at_any_change_every_promised_record_is_found(seed: int) -> None:
    assert crash_everywhere(seed, images=5) >= 250


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 140))
def test_after_many_more_crashes_every_promised_record_is_found(seed: int) -> None:
    assert crash_everywhere(seed, images=10) >= 300


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
@pytest.mark.parametrize("every", [1, 2, 3, 5, 7, 13, 29])
def test_when_every_nth_call_fails_nothing_promised_is_lost(code: int, every: int) -> None:
    assert sum(survive_failures(seed, FaultyFiles(fail_every=(every, code))) for seed in range(5)) > 0


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
@pytest.mark.parametrize("method", ["write", "sync", "allocate", "rename", "remove", "sync_directory", "read", "open"])
def test_when_one_kind_of_call_fails_nothing_promised_is_lost(code: int, method: str) -> None:
    assert sum(survive_failures(seed, FaultyFiles(fail_every=(3, code), only=method)) for seed in range(5)) >= (
        0 if (code, method) == (errno.EINTR, "write") else 1
    )


@pytest.mark.parametrize("every", [1, 2, 3])
def test_short_writes_are_completed(every: int) -> None:
    assert sum(survive_failures(seed, FaultyFiles(short_every=every)) for seed in range(5)) == 0


def test_on_a_real_disk_a_script_reads_back_what_it_wrote(tmp_path: Path) -> None:
    rng = random.Random(5)
    wanted, log = [], Log.open(Files(), str(tmp_path / "log"), segment_size=4096)
    for number in range(300):
        parts = [rng.randbytes(rng.randrange(30)) for _ in range(rng.randrange(5))]
        wanted.append((number % 5 + 1, b"".join(parts)))
        log.append(number % 5 + 1, parts)
        if number % 7 == 0:
            log.sync()
        if number % 100 == 99:
            log.close()
            log = Log.open(Files(), str(tmp_path / "log"), segment_size=4096, required=log.end)
    assert [(record.kind, bytes(record.payload)) for record in log.records(0)] == wanted
    assert len(log.segments) > 5
    log.close()


def test_a_record_of_more_parts_than_a_system_call_takes_is_written_whole(tmp_path: Path) -> None:
    log = Log.open(Files(), str(tmp_path / "log"))
    parts = [number.to_bytes(4, "little") for number in range(5000)]
    log.append(1, parts)
    log.close()
    again = Log.open(Files(), str(tmp_path / "log"), read_only=True)
    assert payloads(again) == [b"".join(parts)]


# --- positions, segments, order


def test_a_records_end_is_the_next_ones_position_across_segments() -> None:
    log = small(FaultyFiles())
    ends = [log.append(1, [b"x" * 300]) for _ in range(9)]
    records = list(log.records(0))
    assert len(log.segments) == 5
    assert [record.end for record in records] == ends
    assert [record.position for record in records] == [0, *ends[:-1]]
    for record in records:
        assert next(log.records(record.position)) == record
    assert list(log.records(log.end)) == []


def test_walking_may_not_begin_inside_a_record_nor_outside_the_log() -> None:
    log = written(FaultyFiles(), b"one", b"two")
    with pytest.raises(LogCorrupt, match="offset 48"):
        list(log.records(8))
    with pytest.raises(LogCorrupt, match=r"holds positions 0 to 96, not 97"):
        list(log.records(97))


def test_a_walk_ends_where_the_log_ended_when_it_began() -> None:
    log = written(FaultyFiles(), b"one", b"two")
    walk = log.records(0)
    assert bytes(next(walk).payload) == b"one"
    log.append(1, [b"three"])
    assert [bytes(record.payload) for record in walk] == [b"two"]


def test_a_record_larger_than_a_segment_takes_one_of_its_own_size() -> None:
    disk = FaultyFiles()
    log = written(disk, b"a", b"b" * 5000, b"c")
    assert [segment.size for segment in log.segments] == [1024, HEAD_SIZE + 2 * FRAME_SIZE + 5000, 1024]
    log.close()
    assert payloads(small(disk)) == [b"a", b"b" * 5000, b"c"]


def test_the_first_record_may_be_larger_than_a_segment() -> None:
    disk = FaultyFiles()
    log = written(disk, b"b" * 5000)
    assert len(log.segments) == 1
    assert payloads(small(disk.image(1))) == [b"b" * 5000]


def test_dropping_removes_whole_segments_and_keeps_the_last() -> None:
    disk = FaultyFiles()
    log = small(disk)
    ends = []
    for number in range(4):
        log.roll()
        ends.append(log.append(1, [bytes([number]) * 20]))
    log.drop_before(ends[1] - 1)
    assert log.start == ends[0]
    log.drop_before(log.end)
    assert log.start == ends[2]
    assert len(disk.list(DIRECTORY)) == 1
    with pytest.raises(LogCorrupt, match="a segment is missing"):
        list(log.records(ends[0]))
    log.close()
    assert payloads(small(disk)) == [bytes([3]) * 20]


def test_after_a_roll_nothing_of_what_was_written_need_stay() -> None:
    """An erased entity's rows may lie in the segment and in a tail that was cut."""
    disk = FaultyFiles()
    written(disk, b"secret").append(1, [b"secret, torn"])
    (path, content), *_ = disk.contents().items()
    left = FaultyFiles.holding({path: content.replace(b"torn", b"to\0\0")})
    log = small(left)
    assert sum(b"secret" in content for content in left.contents().values()) == 2
    log.roll()
    log.drop_before(log.end)
    log.remove_torn()
    log.close()
    assert not any(b"secret" in content for content in left.contents().values())
    assert left.list(DIRECTORY) == [f"{48:020d}.seg"]


def test_rolling_an_empty_segment_makes_no_other() -> None:
    log = small(FaultyFiles())
    log.roll()
    log.append(1, [b"x"])
    log.roll()
    log.roll()
    log.append(1, [b"y"])
    assert [segment.first for segment in log.segments] == [0, 48]


def test_payloads_begin_at_multiples_of_eight_bytes() -> None:
    log = written(FaultyFiles(), b"", b"1", b"12345678", b"123456789")
    assert [record.position % 8 for record in log.records(0)] == [0] * 4
    assert HEAD_SIZE % 8 == FRAME_SIZE % 8 == 0


def test_kind_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="kind 0"):
        small(FaultyFiles()).append(0, [])


# --- opening


def test_a_log_that_was_never_written_opens_again() -> None:
    disk = FaultyFiles()
    small(disk)
    for _ in range(3):
        log = small(disk)
        assert (log.start, log.durable, log.end, payloads(log)) == (0, 0, 0, [])


def test_an_empty_directory_opens() -> None:
    disk = FaultyFiles()
    disk.make_directory(DIRECTORY)
    assert small(disk).end == 0


def test_an_unfinished_segment_is_removed() -> None:
    disk = FaultyFiles()
    written(disk, b"x").close()
    disk.open(f"{DIRECTORY}/{96:020d}.seg.tmp", create=True)
    assert payloads(small(disk)) == [b"x"]
    assert disk.list(DIRECTORY) == [f"{0:020d}.seg"]


def test_a_clean_close_is_marked_once() -> None:
    disk = FaultyFiles()
    written(disk, b"x").close()
    ends = []
    for _ in range(3):
        log = small(disk)
        ends.append(log.end)
        log.close()
        log.close()
    assert ends == [48 + FRAME_SIZE] * 3


def test_a_closed_log_takes_no_writes() -> None:
    log = written(FaultyFiles(), b"x")
    log.close()
    with pytest.raises(StorageError, match="is closed"):
        log.append(1, [b"y"])


def test_reading_only_changes_nothing() -> None:
    disk = FaultyFiles()
    assert payloads(small(disk, read_only=True)) == []
    log = written(disk, b"x")
    log.append(1, [b"torn"])
    torn = FaultyFiles.holding({path: content.replace(b"torn", b"to\0\0") for path, content in disk.contents().items()})
    before = torn.contents()
    again = small(torn, read_only=True)
    assert payloads(again) == [b"x"]
    assert again.end == 48
    with pytest.raises(ReadOnly, match="read_only=True"):
        again.append(1, [b"y"])
    with pytest.raises(ReadOnly, match="read_only=True"):
        again.drop_before(0)
    again.close()
    assert torn.contents() == before
    assert torn.operations == 0


def test_a_reader_is_not_misled_by_an_owner_that_writes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Log.open(Files(), str(tmp_path / "log"))
    owner.append(1, [b"one"])

    def last_written_late(data: memoryview) -> int:
        if owner.end < 200:
            for record in (b"two", b"three"):
                owner.append(1, [record])
                owner.sync()
        return last_written(data)

    monkeypatch.setattr("fastfeat.log.last_written", last_written_late)
    assert payloads(Log.open(Files(), str(tmp_path / "log"), read_only=True))[:3] == [b"one", b"two", b"three"]
    owner.close()


def test_a_segment_whose_naming_was_interrupted_ends_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FaultyFiles()
    log = written(disk, b"x")
    with monkeypatch.context() as patched:
        patched.setattr(disk, "sync_directory", interrupt)
        with pytest.raises(KeyboardInterrupt):
            log.roll()
    with pytest.raises(LogFailed, match="interrupted"):
        log.append(1, [b"y"])
    log.close()
    assert payloads(small(disk)) == [b"x"]


def interrupt(path: str) -> None:
    raise KeyboardInterrupt


def test_a_torn_tail_is_set_aside_and_cut() -> None:
    disk = FaultyFiles()
    log = written(disk, b"x")
    log.append(1, [b"torn"])
    torn = FaultyFiles.holding({path: content.replace(b"torn", b"to\0\0") for path, content in disk.contents().items()})
    assert payloads(small(torn)) == [b"x"]
    aside = torn.contents()[f"{DIRECTORY}/torn-{48:020d}.bin"]
    assert aside.rstrip(b"\0").endswith(b"to")
    assert not any(torn.contents()[f"{DIRECTORY}/{0:020d}.seg"][HEAD_SIZE + 48 :])


def test_a_frame_behind_the_cut_never_follows_a_new_one() -> None:
    """The second record is lost, the third is not; then a record of the second's size is written in its place."""
    disk = FaultyFiles()
    log = written(disk, b"one")
    log.append(1, [b"two"])
    log.append(1, [b"three"])
    path = log.segments[0].path
    lost = bytearray(disk.contents()[path])
    lost[HEAD_SIZE + 48 : HEAD_SIZE + 96] = bytes(48)
    left = FaultyFiles.holding({path: bytes(lost)})
    written(left, b"TWO")
    assert payloads(small(left)) == [b"one", b"TWO"]


# --- damage


@pytest.mark.parametrize("is_closed", [True, pytest.param(False, marks=pytest.mark.torture)])
def test_each_changed_bit_is_detected_or_leaves_a_valid_prefix(is_closed: bool) -> None:
    opened, refused = flip_everything(sample(is_closed=is_closed))
    assert opened > 1000
    assert refused > 1000


def test_a_frame_in_anothers_place_is_detected() -> None:
    assert misplace_everything(sample(is_closed=True)) >= 4


def test_each_truncation_is_detected() -> None:
    made = sample(is_closed=True)
    for path in made.segments:
        content = made.contents[path]
        assert not any(opens_with(made, path, content[:size], made.promised) for size in range(len(content)))


def test_garbage_in_any_place_is_detected_or_leaves_a_valid_prefix() -> None:
    made, rng, outcomes = sample(is_closed=False), random.Random(11), set()
    for _ in range(500):
        path = rng.choice(made.segments)
        content = bytearray(made.contents[path])
        begin = rng.randrange(len(content))
        size = min(rng.choice([1, 8, 40, 100, 512]), len(content) - begin)
        source = rng.randrange(len(content))
        filler = rng.choice([bytes(size), rng.randbytes(size), content[source : source + size].ljust(size, b"\xff")])
        content[begin : begin + size] = filler
        outcomes.add(opens_with(made, path, bytes(content), 0))
    assert outcomes == {True, False}


def test_a_missing_segment_is_noticed_wherever_it_was() -> None:
    made = sample(is_closed=True)
    for gone in made.segments[1:-1]:
        disk = FaultyFiles.holding({path: content for path, content in made.contents.items() if path != gone})
        with pytest.raises(LogCorrupt, match="is missing"):
            small(disk)
    for gone in (made.segments[0], made.segments[-1]):
        disk = FaultyFiles.holding({path: content for path, content in made.contents.items() if path != gone})
        with pytest.raises(LogCorrupt):
            list(small(disk, required=made.promised).records(0))


def test_a_log_that_ends_before_what_is_required_is_refused() -> None:
    disk = FaultyFiles()
    written(disk, b"x").close()
    assert small(disk, required=88).end == 88
    with pytest.raises(LogCorrupt, match=r"everything below 89 was promised durable"):
        small(disk, required=89)
    with pytest.raises(LogCorrupt, match=r"is empty, but everything below 1 was"):
        small(FaultyFiles(), required=1)


def test_damage_is_named_with_file_offset_position_reason_and_remedy() -> None:
    disk = FaultyFiles()
    written(disk, b"first", b"second").close()
    (path, content), *_ = disk.contents().items()
    with pytest.raises(LogCorrupt) as caught:
        small(FaultyFiles.holding({path: content.replace(b"second", b"sECond")}))
    assert str(caught.value) == (
        f"{path}: offset 88 (position 48): the payload's checksum does not hold, but a later frame says that "
        f"everything below 96 was promised durable; restore a backup; `fastfeat check {ROOT}` shows what is left"
    )


def test_a_promise_is_found_across_the_chunks_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastfeat.log.CHUNK_SIZE", 64)
    disk = FaultyFiles()
    log = written(disk, b"first", b"second" * 20)
    log.close()
    content = disk.contents()[log.segments[0].path]
    for position in range(0, 160, 8):  # the mark's header then lies anywhere in a chunk
        assert find_promise(log.segments[0], memoryview(content), position, len(content)) > position
    with pytest.raises(LogCorrupt):
        small(FaultyFiles.holding({log.segments[0].path: content.replace(b"first", b"FIRST")}))


def test_a_payload_cannot_pose_as_a_later_frame() -> None:
    """A header that someone guesses whole still lacks the segment's salt."""
    body = struct.pack("<IQQQII", 0, 0, 48, 48, 1, 0)
    forged = struct.pack("<I", crc32c(body)) + body
    disk = FaultyFiles()
    log = small(disk)
    log.append(1, [b"12345678" + forged])
    path, content = log.segments[0].path, disk.contents()[log.segments[0].path]
    torn = FaultyFiles.holding({path: content.replace(b"12345678", b"1234\0\0\0\0")})
    assert log.segments[0].salt != 0
    assert payloads(small(torn)) == []


def test_a_segment_full_of_what_looks_like_frames_is_read_in_one_pass() -> None:
    size = 1 << 20
    segment = Segment(f"{DIRECTORY}/{0:020d}.seg", 1, 0, size, 0)
    words = b"".join((offset - 16 - HEAD_SIZE & (1 << 64) - 1).to_bytes(8, "little") for offset in range(40, size, 8))
    disk = FaultyFiles.holding({segment.path: segment.head() + words})
    log = Log.open(disk, DIRECTORY)
    assert log.end == 0
    assert not any(disk.read(segment.path)[HEAD_SIZE:])


# --- a disk that fails


def test_a_failed_sync_is_final() -> None:
    disk = FaultyFiles()
    log = written(disk, b"x")
    log.append(1, [b"lost"])
    disk.fail_at, disk.only, disk.calls = (1, errno.EIO), "sync", 0
    with pytest.raises(LogFailed, match="open the store again"):
        log.sync()
    for attempt in (log.sync, lambda: log.append(1, [b"y"]), lambda: log.drop_before(0)):
        with pytest.raises(LogFailed, match="open the store again"):
            attempt()
    syncs = disk.calls
    log.close()
    assert disk.calls == syncs == 1
    assert log.durable == 48


def test_what_a_failed_sync_left_in_the_page_cache_is_written_again() -> None:
    disk = FaultyFiles()
    log = written(disk, b"x")
    log.append(1, [b"only cached"])
    disk.fail_at, disk.only, disk.calls = (1, errno.EIO), "sync", 0
    with pytest.raises(LogFailed):
        log.sync()
    disk.restart()
    assert payloads(small(disk)) == [b"x", b"only cached"]
    assert all(payloads(small(disk.image(seed))) == [b"x", b"only cached"] for seed in range(20))


def test_a_full_disk_refuses_the_record_and_takes_the_next_when_there_is_space() -> None:
    disk = FaultyFiles()
    log = written(disk, b"x")
    disk.fail_every, disk.only = (1, errno.ENOSPC), "allocate"
    for _ in range(3):
        with pytest.raises(DiskFull, match="free space"):
            log.append(1, [b"y" * 2000])
    log.append(1, [b"fits"])
    disk.fail_every = None
    log.append(1, [b"z" * 2000])
    log.sync()
    assert all(payloads(small(disk.image(seed))) == [b"x", b"fits", b"z" * 2000] for seed in range(20))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_record_that_met_a_full_disk_is_never_found(code: int) -> None:
    """Its second half is zeros, as the segment was: what was written of it would be a whole record."""
    for size in range(0, 120, 8):
        disk = FaultyFiles()
        log = written(disk, b"x")
        disk.fail_at, disk.only, disk.calls = (1, code), "write", 0
        with pytest.raises(DiskFull):
            log.append(1, [b"y", bytes(size + 39)])
        assert all(payloads(small(disk.image(seed))) == [b"x"] for seed in range(10))
        log.append(1, [b"z"])
        log.sync()
        assert payloads(small(disk.image(1))) == [b"x", b"z"]


def test_a_disk_that_became_read_only_says_so_and_may_recover() -> None:
    disk = FaultyFiles()
    log = written(disk, b"x")
    disk.fail_at, disk.only, disk.calls = (1, errno.EROFS), "write", 0
    with pytest.raises(ReadOnly, match="Read-only file system") as caught:
        log.append(1, [b"y"])
    assert type(caught.value) is ReadOnly
    log.append(1, [b"z"])
    log.sync()
    assert payloads(log) == [b"x", b"z"]


def test_a_write_that_cannot_be_undone_ends_the_log() -> None:
    disk = FaultyFiles()
    log = written(disk, b"x")
    disk.fail_every, disk.only = (1, errno.ENOSPC), "write"
    with pytest.raises(LogFailed, match="undoing"):
        log.append(1, [b"y"])
    disk.fail_every = None
    with pytest.raises(LogFailed):
        log.append(1, [b"y"])


def test_an_error_of_the_disk_ends_the_log() -> None:
    disk = FaultyFiles()
    log = written(disk, b"x")
    disk.fail_at, disk.only, disk.calls = (1, errno.EIO), "write", 0
    with pytest.raises(LogFailed):
        log.append(1, [b"y"])
    with pytest.raises(LogFailed):
        log.sync()


def test_closing_a_full_disk_keeps_the_records_and_leaves_out_the_mark() -> None:
    disk = FaultyFiles()
    log = written(disk, b"x")
    disk.fail_every, disk.only = (1, errno.ENOSPC), "write"
    log.close()
    assert payloads(small(disk.image(3))) == [b"x"]


def test_closing_says_when_the_last_records_could_not_be_synced() -> None:
    disk = FaultyFiles()
    log = written(disk, b"x")
    log.append(1, [b"y"])
    disk.fail_every, disk.only = (1, errno.EIO), "sync"
    with pytest.raises(LogFailed):
        log.close()


def test_a_directory_that_cannot_be_written_is_read_only(tmp_path: Path) -> None:
    disk = FaultyFiles(fail_every=(1, errno.EACCES), only="make_directory")
    with pytest.raises(ReadOnly, match="make the disk writable"):
        small(disk)


def test_a_script_runs_the_same_on_the_model_and_leaves_its_trace() -> None:
    disk, expected = FaultyFiles(), Expected()
    run(disk, expected, random.Random(3), 30)
    assert disk.operations == len(disk.trace)
    log = recovered(disk, expected)
    act(log, expected, random.Random(4))


# --- the format


def test_the_bytes_are_those_that_the_page_draws() -> None:
    disk = FaultyFiles()
    log = written(disk, b"hello", b"")
    log.close()
    content = disk.contents()[f"{DIRECTORY}/{0:020d}.seg"]
    magic, checksum, salt, first, size, previous = struct.unpack_from("<8sIIQQQ", content)
    assert (magic, first, size, previous) == (b"FFLOG001", 0, 1024, 0)
    assert checksum == crc32c(content[12:40])
    frames = [(40, 5, 0, 0, 1), (88, 0, 48, 48, 1), (128, 0, 88, 88, 0)]
    for offset, length, position, durable, kind in frames:
        fields = struct.unpack_from("<IIQQQII", content, offset)
        body = content[offset + 40 : offset + 40 + (length + 7 & ~7)]
        assert fields[0] == crc32c(content[offset + 4 : offset + 40], salt)
        assert fields[1:] == (crc32c(body), length, position, durable, kind, 0)
    assert content[80:88] == b"hello\0\0\0"
    assert not any(content[168:])
    assert os.path.basename(log.segments[0].path) == "00000000000000000000.seg"


def test_a_log_that_goes_on_in_a_new_segment_is_at_no_moment_a_failed_one(tmp_path: Path) -> None:
    """Whoever watches it from another thread would end the server."""
    seen: list[object] = []

    class Watched(Files):
        def rename(self, old: str, new: str) -> None:
            super().rename(old, new)
            seen.append(log.refusal)

    log = Log.open(Files(), str(tmp_path / "log"), segment_size=1024)
    log._files = Watched()
    for _ in range(20):
        log.append(1, [bytes(200)])
        log.sync()
    assert len(seen) > 2
    assert set(seen) == {None}
    log.close()
