"""The front door: what it keeps bit for bit, what it refuses by which status, and that it leaves nothing behind."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctnode.archive import incoming as incoming_module
from ctnode.archive import rooms as rooms_module
from ctnode.archive import spool as spool_module
from ctnode.archive.hashing import Helper
from ctnode.archive.incoming import PIECE_BYTES
from ctnode.archive.part10 import Opened
from ctnode.archive.spool import JOURNAL_NAME, Spool
from ctnode.ops import durable
from ctnode.words import BadInstance, DimseStatus, Mismatch, StorageError
from tests.archive_root import CT, Image, element, opened, put

pytestmark = pytest.mark.integration

EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    place = tmp_path / "incoming"
    place.mkdir()
    return Spool(place)


def dataset_of(path: Path) -> bytes:
    content = path.read_bytes()
    group_length = int.from_bytes(content[140:144], "little")
    return content[144 + group_length :]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tail=st.integers(0, 3 * PIECE_BYTES),
    cuts=st.lists(st.integers(0, 3 * PIECE_BYTES), max_size=6),
    others=st.booleans(),
)
def test_a_data_set_is_kept_bit_for_bit_however_it_is_cut(
    spool: Spool, tail: int, cuts: list[int], others: bool
) -> None:
    """Alone, hashed beside the association; with others, large pieces written from where they were received."""
    data = Image("1.2.3.1.7").encode() + random.Random(tail).randbytes(tail)
    spool.hashing = Helper()
    spool.hashing.is_alone = not others
    with spool.open_association(opened()) as journal:
        incoming = journal.receive(transfer_syntax=EXPLICIT, sop_class=CT, sop_instance="1.2.3.1.7")
        places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        for begin, end in itertools.pairwise(places):
            incoming.write(memoryview(data)[begin:end])
        kept = incoming.commit()
    assert dataset_of(kept.path) == data
    assert kept.digest == hashlib.sha256(data).hexdigest()
    assert kept.size_bytes == len(data)


def test_file_meta_says_who_sent_and_what_it_was(spool: Spool) -> None:
    with spool.open_association(opened()) as journal:
        kept = put(journal, Image("1.2.3.1.7"))
    meta = pydicom.dcmread(kept.path).file_meta
    assert meta.MediaStorageSOPClassUID == CT
    assert meta.MediaStorageSOPInstanceUID == "1.2.3.1.7"
    assert meta.TransferSyntaxUID == EXPLICIT
    assert meta.SourceApplicationEntityTitle == meta.SendingApplicationEntityTitle == "SENDER"
    assert meta.ReceivingApplicationEntityTitle == "CTNODE"
    assert meta.SourcePresentationAddress == meta.SendingPresentationAddress == "10.0.0.1:4711"
    assert meta.ReceivingPresentationAddress == "10.0.0.2:11112"
    assert meta.PrivateInformationCreatorUID == meta.ImplementationClassUID
    assert meta.PrivateInformation == hashlib.sha256(Image("1.2.3.1.7").encode()).digest()
    assert meta.ImplementationVersionName.startswith("CTNODE_")


def test_files_of_other_doors_say_so(spool: Spool) -> None:
    with spool.open_association(Opened("import", "", "", "file:import", "file:import")) as journal:
        kept = put(journal, Image("1.2.3.1.7"))
    meta = pydicom.dcmread(kept.path).file_meta
    assert meta.SourcePresentationAddress == "file:import"
    assert "SourceApplicationEntityTitle" not in meta


@pytest.mark.skipif(shutil.which("dcmdump") is None, reason="DCMTK is not installed: dcmdump")
def test_dcmdump_reads_what_is_kept(spool: Spool) -> None:
    with spool.open_association(opened()) as journal:
        kept = put(journal, Image("1.2.3.1.7"))
    text = subprocess.run(["dcmdump", "-M", str(kept.path)], capture_output=True, text=True, check=True).stdout
    for line in ("(0002,0016) AE [SENDER]", "(0002,0018) AE [CTNODE]", "(0002,0026) UR [10.0.0.1:4711]"):
        assert line in text


def test_two_arrivals_of_one_image_have_one_digest_and_two_files(spool: Spool) -> None:
    kept = []
    for port in ("1", "2"):
        with spool.open_association(opened(address=f"10.0.0.1:{port}")) as journal:
            kept.append(put(journal, Image("1.2.3.1.7")))
    assert kept[0].digest == kept[1].digest
    assert kept[0].path.read_bytes() != kept[1].path.read_bytes()


# -------------------------------------------------------------------------------- what is not acknowledged


def receive(spool: Spool, data: bytes, *, sop: str = "1.2.3.1.7", sop_class: str = CT, syntax: str = EXPLICIT):
    with spool.open_association(opened()) as journal:
        try:
            incoming = journal.receive(transfer_syntax=syntax, sop_class=sop_class, sop_instance=sop)
            incoming.write(data)
            return incoming.commit()
        finally:
            left = sorted(name for name in os.listdir(journal.directory) if name != JOURNAL_NAME)
            assert len(left) == journal.kept


@pytest.mark.parametrize("change", [{"sop": "1.2.3.1.8"}, {"sop_class": "1.2.840.10008.5.1.4.1.1.4"}])
def test_another_name_in_command_and_data_set_is_a900(spool: Spool, change: dict[str, str]) -> None:
    with pytest.raises(Mismatch) as refused:
        receive(spool, Image("1.2.3.1.7").encode(), **change)
    assert refused.value.dimse_status == DimseStatus.DATA_SET_MISMATCH == 0xA900


def without(tag: bytes) -> bytes:
    whole = Image("1.2.3.1.7").encode()
    begin = whole.index(tag)
    length = int.from_bytes(whole[begin + 6 : begin + 8], "little")
    return whole[:begin] + whole[begin + 8 + length :]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        b"rubbish that is no data set whatever one tries",
        os.urandom(4096),
        Image("1.2.3.1.7").encode()[:40],
        Image("1.2.3.1.7", study="").encode(),
        Image("1.2.3.1.7", series="1" * 65).encode(),
        Image("1.2.3.1.7", study="1/2").encode(),
        Image("1.2.3.1.7", study="1\\2").encode(),
        Image("1.2.3.1.7", study="..").encode(),
        Image("1.2.3.1.7", study="1.2\0.3").encode(),
        without(b"\x20\0\x0d\0"),
        without(b"\x20\0\x0e\0"),
        without(b"\x08\0\x18\0"),
        without(b"\x08\0\x16\0"),
    ],
)
def test_what_cannot_be_named_is_c000_and_leaves_nothing(spool: Spool, data: bytes) -> None:
    with pytest.raises(BadInstance) as refused:
        receive(spool, data)
    assert refused.value.dimse_status == DimseStatus.CANNOT_UNDERSTAND == 0xC000
    assert len(refused.value.message) <= 64, "an ErrorComment is LO"


@pytest.mark.parametrize("uid", ["", "1" * 65, "1/2", "1\\2", "a\0b", "..", ".", "\u4e2d" * 65])
def test_an_announced_uid_that_names_nothing_is_c000(spool: Spool, uid: str) -> None:
    with pytest.raises(BadInstance):
        receive(spool, Image("1.2.3.1.7").encode(), sop=uid)


def test_a_refused_instance_leaves_the_association_alive(spool: Spool) -> None:
    with spool.open_association(opened()) as journal:
        with pytest.raises(BadInstance):
            put(journal, Image("1.2.3.1.7", study=""))
        assert put(journal, Image("1.2.3.1.8")).path.is_file()


def test_uids_behind_the_first_piece_are_found(spool: Spool) -> None:
    far = element(0x09, 0x1001, "OB", bytes(2 * PIECE_BYTES))
    data = Image("1.2.3.1.7").encode()
    cut = data.index(b"\x10\0\x10\0")
    assert receive(spool, data[:cut] + far + data[cut:]).uids.series == "1.2.3.1"


@pytest.mark.parametrize("syntax", [EXPLICIT, DEFLATED])
def test_rubbish_behind_the_first_piece_is_c000_and_nothing_else(spool: Spool, syntax: str) -> None:
    data = Image("1.2.3.1.7").encode()
    cut = data.index(b"\x10\0\x10\0")
    data = data[:cut] + element(0x09, 0x1001, "OB", os.urandom(2 * PIECE_BYTES)) + b"\x08\0\0\0UL\4\0\0\0\0\0" * 9
    if syntax == DEFLATED:
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = packer.compress(data) + packer.flush()
        data = data[: PIECE_BYTES + 100] + b"\xff" * 1000
    with pytest.raises(BadInstance):
        receive(spool, data, syntax=syntax)


# --------------------------------------------------------------------------------------- order and faults


class Watched:
    """The operating system, with a note of each call and a fault at the n-th one."""

    CALLS = ("open", "write", "pwrite", "fsync", "fdatasync", "rename", "close", "statvfs")

    def __init__(self, fail_at: int = -1, code: int = errno.ENOSPC) -> None:
        self.fail_at = fail_at
        self.code = code
        self.calls: list[str] = []
        self.names: dict[int, str] = {}

    def tick(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) - 1 == self.fail_at:
            raise OSError(self.code, os.strerror(self.code))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        fake = SimpleNamespace(**{name: getattr(os, name) for name in dir(os) if not name.startswith("__")})
        for name in self.CALLS:
            setattr(fake, name, self.wrap(name, getattr(os, name)))
        patch.setattr(spool_module, "os", fake)
        patch.setattr(incoming_module, "os", fake)
        patch.setattr(rooms_module, "os", fake)
        patch.setattr(durable, "os", fake)
        flock = SimpleNamespace(**{name: getattr(fcntl, name) for name in dir(fcntl) if not name.startswith("__")})
        flock.flock = self.wrap("flock", fcntl.flock)
        patch.setattr(spool_module, "fcntl", flock)
        patch.setattr(Path, "mkdir", self.wrap("mkdir", Path.mkdir))

    def wrap(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if name == "open":
                self.tick(f"open {Path(str(arguments[0])).suffix or 'directory'}")
                descriptor = real(*arguments, **options)
                self.names[int(str(descriptor))] = Path(str(arguments[0])).suffix or "directory"
                return descriptor
            if name == "close":
                # Linux gives the descriptor back even when close() fails.
                real(*arguments, **options)
            label = self.names.get(arguments[0], "") if arguments and isinstance(arguments[0], int) else ""
            self.tick(f"{name} {label}".strip())
            return None if name == "close" else real(*arguments, **options)

        return call


@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside others"])
@pytest.mark.parametrize("pixel_bytes", [4, 2 * PIECE_BYTES])
def test_success_comes_after_fsync_rename_and_fsync_of_the_directory_where_the_name_is_new(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, pixel_bytes: int, others: bool
) -> None:
    spool.hashing.is_alone = not others
    watched = Watched()
    with monkeypatch.context() as patch:
        watched.install(patch)
        with spool.open_association(opened()) as journal:
            put(journal, Image("1.2.3.1.6"))
            for number, is_new in ((7, True), (8, False), (9, False), (10, True)):
                watched.calls.clear()
                kept = put(journal, Image(f"1.2.3.1.{number}", pixels=bytes(pixel_bytes)))
                calls = list(watched.calls)
                assert kept.path.suffix == ".dcm"
                order = [call for call in calls if call.startswith(("fdatasync", "rename", "fsync", "pwrite"))]
                assert order == [
                    # It is begun; at the end its digest, where it did not go with the first piece.
                    "pwrite .part",
                    *(["pwrite .part"] if pixel_bytes > PIECE_BYTES else []),
                    "fdatasync .part",
                    "rename",
                    *(["fsync directory"] if is_new else []),
                ]
                assert calls.index("fdatasync .part") > max(at for at, call in enumerate(calls) if "write" in call)


def test_the_journal_itself_is_durable_before_its_first_instance(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    with monkeypatch.context() as patch:
        watched.install(patch)
        with spool.open_association(opened()) as journal:
            put(journal, Image("1.2.3.1.7"))
    order = [call for call in watched.calls if "sync" in call]
    assert order == ["fsync .jsonl", "fsync directory", "fsync directory", "fdatasync .part"]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("pixel_bytes", [4, 2 * PIECE_BYTES], ids=["small", "large"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_fault_at_any_call_is_a700_and_leaves_nothing_behind(tmp_path: Path, code: int, pixel_bytes: int) -> None:
    """Walk through every call of a whole association and let that one fail."""
    before = descriptors()
    image = Image("1.2.3.1.7", pixels=bytes(pixel_bytes))
    for fail_at in range(100):
        place = tmp_path / str(fail_at)
        place.mkdir()
        watched = Watched(fail_at, code)
        kept = None
        with pytest.MonkeyPatch.context() as patch:
            watched.install(patch)
            fault = None
            try:
                spool = Spool(place)
                spool.hashing.is_alone = False
                with spool.open_association(opened()) as journal:
                    kept = put(journal, image)
                    journal.notice("echo", {})
            except StorageError as error:
                fault = error
        assert descriptors() == before, watched.calls[-1]
        files = [path for path in place.rglob("*") if path.is_file() and path.name != JOURNAL_NAME]
        assert files == ([kept.path] if kept else []), watched.calls
        if fault is None and len(watched.calls) <= fail_at:
            break
        if fault is not None:
            assert fault.dimse_status == DimseStatus.OUT_OF_RESOURCES == 0xA700
            assert fault.retryable
            assert not any(word in str(fault) for word in (str(place), "1.2.3"))
    assert fail_at > 12, "the walk saw every call"


def test_after_a_fault_the_association_can_keep_the_next_instance(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with spool.open_association(opened()) as journal:
        put(journal, Image("1.2.3.1.5"))
        for fail_at in range(9):
            with monkeypatch.context() as patch, suppress(StorageError):
                Watched(fail_at).install(patch)
                # A fault of close() alone does not matter: what fsync took is durable.
                put(journal, Image(f"1.2.3.1.6.{fail_at}"))
        assert put(journal, Image("1.2.3.1.7")).path.is_file()
        held = [path for path in journal.directory.iterdir() if path.stat().st_size]
        assert len(held) == 1 + journal.kept
    assert len(os.listdir(journal.directory)) == 1 + journal.kept


def test_a_write_that_takes_only_half_is_completed(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(**{name: getattr(os, name) for name in dir(os) if not name.startswith("__")})
    fake.write = lambda descriptor, data: os.write(descriptor, memoryview(data)[: max(1, len(data) // 2)])
    with spool.open_association(opened()) as journal:
        monkeypatch.setattr(incoming_module, "os", fake)
        kept = put(journal, Image("1.2.3.1.7"))
        monkeypatch.undo()
    assert dataset_of(kept.path) == Image("1.2.3.1.7").encode()


@pytest.mark.parametrize("reserve", [{"reserve_bytes": 1 << 62}, {"reserve_inodes": 1 << 62}])
def test_without_room_no_association_begins(tmp_path: Path, reserve: dict[str, int]) -> None:
    with pytest.raises(StorageError):
        Spool(tmp_path, **reserve).open_association(opened())
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_is_gone_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Spool(tmp_path / "nowhere").open_association(opened())


# ------------------------------------------------------------------------------------------------ journal


def records(journal_directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (journal_directory / JOURNAL_NAME).read_text().splitlines()]


def test_the_journal_tells_the_life_of_an_association(spool: Spool) -> None:
    with spool.open_association(opened()) as journal:
        put(journal, Image("1.2.3.1.7"))
        journal.notice("find", {"level": "STUDY"})
    first, request, last = records(journal.directory)
    assert (first["what"], first["calling_ae"], first["peer_address"]) == ("opened", "SENDER", "10.0.0.1:4711")
    assert (request["what"], request["level"]) == ("find", "STUDY")
    assert (last["what"], last["how"], last["kept"]) == ("closed", "released", 1)
    assert str(first["at"]).endswith("Z")


def test_the_journal_is_locked_while_the_association_lives(spool: Spool) -> None:
    with spool.open_association(opened()) as journal:
        assert durable.is_locked(journal.directory / JOURNAL_NAME)
    assert not durable.is_locked(journal.directory / JOURNAL_NAME)


def test_closing_twice_writes_one_end(spool: Spool) -> None:
    journal = spool.open_association(opened())
    journal.close("released")
    journal.close("aborted")
    assert [record["what"] for record in records(journal.directory)] == ["opened", "closed"]


def test_names_sort_in_the_order_of_arrival(spool: Spool) -> None:
    with spool.open_association(opened()) as journal:
        names = [put(journal, Image(f"1.2.3.1.{k}")).path.name for k in range(20)]
    assert names == sorted(names)
