"""Whatever happens to the bytes of a log: it gives back a beginning of what was written, or refuses to open."""

from hypothesis import given, settings
from hypothesis import strategies as st

from raftspine.errors import Corrupt
from raftspine.storage.wal import Wal
from tests.support.memory_disk import MemoryDisk

PAYLOADS = st.lists(st.binary(max_size=900) | st.binary(max_size=5), min_size=1, max_size=8)


@settings(max_examples=300, deadline=None)
@given(PAYLOADS, st.data())
def test_no_damage_makes_up_reorders_or_skips_a_record(payloads: list[bytes], data: st.DataObject) -> None:
    disk = MemoryDisk()
    wal = Wal.open(disk, segment_bytes=10**6)
    for payload in payloads:
        wal.append(payload)
    (content,) = disk.files.values()
    start = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.integers(1, 600))
    match data.draw(st.sampled_from(["cut", "zero", "flip", "overwrite", "grow"])):
        case "cut":
            del content[start:]
        case "zero":
            content[start : start + length] = bytes(len(content[start : start + length]))
        case "flip":
            content[start] ^= 1 << data.draw(st.integers(0, 7))
        case "overwrite":
            content[start : start + length] = data.draw(st.binary(min_size=1, max_size=50))
        case "grow":
            content += data.draw(st.binary(max_size=50))
    try:
        reopened = Wal.open(disk, segment_bytes=10**6)
    except Corrupt as refused:
        assert {"file", "offset"} == set(refused.details)
        return
    kept = list(reopened.replay())
    assert kept == list(enumerate(payloads[: len(kept)], 1))
    assert reopened.append(b"new") == len(kept) + 1
    assert list(Wal.open(disk, segment_bytes=10**6).replay()) == [*kept, (len(kept) + 1, b"new")]
