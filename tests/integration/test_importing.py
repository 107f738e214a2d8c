"""Files through the front door: DICOM comes in untouched, the rest is passed over, nothing stops the others."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ctnode.archive.header import read_header, read_meta
from ctnode.archive.layout import Layout
from ctnode.archive.suspect import clear_by_probe, mark
from ctnode.flow import importing
from ctnode.flow.importing import Outcome, import_paths
from ctnode.words import StorageError
from tests.archive_root import Image, element

pytestmark = pytest.mark.integration


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "node", tmp_path / "node" / "results")
    layout.create()
    return layout


def part10(image: Image, *, transfer_syntax: str = "1.2.840.10008.1.2.1", tail: bytes = b"") -> bytes:
    meta = element(2, 2, "UI", image.sop_class) + element(2, 3, "UI", image.sop) + element(2, 16, "UI", transfer_syntax)
    group = struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta))
    return bytes(128) + b"DICM" + group + meta + image.encode() + tail


def outcomes(layout: Layout, *paths: Path) -> dict[str, str]:
    return {Path(found.name).name: str(found.outcome) for found in import_paths(layout, paths, door="import")}


def kept(layout: Layout) -> list[Path]:
    return sorted(layout.incoming.glob("*/*.dcm"))


def left_behind(layout: Layout) -> list[str]:
    return [
        str(path) for path in layout.root.rglob("*") if path.suffix == ".part" or path.parent.name.startswith("tmp")
    ]


def test_the_data_set_is_untouched_and_only_the_meta_is_ours(layout: Layout, tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    file.write_bytes(part10(Image("1.2.3.1.7"), tail=b"\0" * 7))
    assert outcomes(layout, file) == {"a.dcm": "imported"}
    (arrived,) = kept(layout)
    content = arrived.read_bytes()
    meta = read_meta(content)
    assert meta is not None
    assert content[meta.dataset_start :] == Image("1.2.3.1.7").encode() + b"\0" * 7
    assert b"file:import" in content[: meta.dataset_start]
    assert read_header(arrived).uids.sop_instance == "1.2.3.1.7"
    assert file.is_file()


def implicit(image: Image) -> bytes:
    data, out, position = image.encode(), b"", 0
    while position < len(data):
        tag, vr = data[position : position + 4], data[position + 4 : position + 6]
        header = 12 if vr == b"OW" else 8
        size = struct.unpack_from("<L" if header == 12 else "<H", data, position + header - (4 if header == 12 else 2))[
            0
        ]
        out += tag + struct.pack("<L", size) + data[position + header : position + header + size]
        position += header + size
    return out


@pytest.mark.parametrize(
    ("encoded", "syntax"), [(Image.encode, "1.2.840.10008.1.2.1"), (implicit, "1.2.840.10008.1.2")]
)
def test_bare_data_sets_are_recognised(layout: Layout, tmp_path: Path, encoded, syntax: str) -> None:
    (tmp_path / "bare").write_bytes(encoded(Image("1.2.3.1.7")))
    assert outcomes(layout, tmp_path / "bare") == {"bare": "imported"}
    assert read_header(kept(layout)[0]).transfer_syntax == syntax


JUNK = {
    "empty": b"",
    "short": b"DI",
    "text.txt": b"not DICOM\n" * 50,
    "image.png": b"\x89PNG\r\n\x1a\n" + bytes(300),
    "zeros": bytes(5000),
    "only-preamble": bytes(128) + b"DICM",
    "no-uids.dcm": bytes(128) + b"DICM" + element(2, 16, "UI", "1.2.840.10008.1.2.1") + element(8, 0x60, "CS", "CT"),
    "DICOMDIR": part10(Image("1.2.3.9", sop_class="1.2.840.10008.1.3.10", study="", series="")),
}


def test_junk_is_passed_over_or_refused_and_the_rest_comes_in(layout: Layout, tmp_path: Path) -> None:
    folder = tmp_path / "disk" / "deep" / "er"
    folder.mkdir(parents=True)
    for name, content in JUNK.items():
        (folder / name).write_bytes(content)
    (folder / "z.dcm").write_bytes(part10(Image("1.2.3.1.7")))
    (folder / "broken-link").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe")
    found = outcomes(layout, tmp_path / "disk")
    assert found.pop("z.dcm") == "imported"
    assert set(found) >= set(JUNK)
    assert not {name for name, outcome in found.items() if outcome == "imported"}
    assert found["DICOMDIR"] == found["text.txt"] == found["no-uids.dcm"] == "passed over"
    assert left_behind(layout) == []
    assert len(kept(layout)) == 1


def test_an_image_with_a_uid_that_cannot_be_kept_is_refused(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(part10(Image("1.2.3.1.7", series="1/2")))
    assert outcomes(layout, tmp_path / "a.dcm") == {"a.dcm": "refused"}
    assert left_behind(layout) == []


def test_a_file_that_cannot_be_read_half_way_leaves_nothing(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.dcm").write_bytes(part10(Image("1.2.3.1.7"), tail=bytes(1 << 20)))
    real = Path.open

    class Failing(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            if size == importing.PIECE_BYTES:
                raise OSError(5, "Input/output error")
            return super().read(size)

    def open_failing(self: Path, *arguments, **options):
        return Failing(str(self)) if self.name == "a.dcm" else real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_failing)
    assert outcomes(layout, tmp_path / "a.dcm") == {"a.dcm": "refused"}
    assert left_behind(layout) == []


def test_storage_that_takes_no_more_ends_the_import(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.dcm").write_bytes(part10(Image("1.2.3.1.7")))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ctnode.archive.spool.os.fdatasync", full)
    with pytest.raises(StorageError):
        outcomes(layout, tmp_path / "a.dcm")
    assert left_behind(layout) == []


# --------------------------------------------------------------------------------------------------- zips


def test_nothing_comes_in_while_the_storage_is_suspect(layout: Layout, tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    file.write_bytes(part10(Image("1.2.3.1.7")))
    mark(layout.run, "storage is suspect: a sync failed")
    with pytest.raises(StorageError, match="a sync failed"):
        outcomes(layout, file)
    assert "a sync failed" in str(run_child(layout, file)[-1]["retry"])
    assert file.exists()
    assert clear_by_probe(layout) == ""
    assert outcomes(layout, file) == {"a.dcm": "imported"}


def zipped(place: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(place, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return place


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_of_a_zip_come_in_and_choose_no_place(layout: Layout, tmp_path: Path, compression: int) -> None:
    members = {
        "../../escape.dcm": part10(Image("1.2.3.1.1")), "/etc/absolute.dcm": part10(Image("1.2.3.1.2")),
        "C:\\windows.dcm": part10(Image("1.2.3.1.3")), "folder/": b"", "read.me": b"text",
    }  # fmt: skip
    before = {path for path in tmp_path.rglob("*") if path.name not in {"node", "a.zip"}}
    found = outcomes(layout, zipped(tmp_path / "a.zip", members, compression))
    assert sorted(found.values()) == ["imported", "imported", "imported", "passed over"]
    after = {path for path in tmp_path.rglob("*") if layout.root not in path.parents and path.name != "a.zip"}
    assert after - {layout.root} <= before | {layout.root}
    assert left_behind(layout) == []
    assert os.listdir(layout.run) == []


def test_a_dicom_file_with_a_zip_at_its_end_is_a_dicom_file(layout: Layout, tmp_path: Path) -> None:
    hidden = zipped(tmp_path / "a.zip", {"b.dcm": part10(Image("1.2.3.1.99"))}).read_bytes()
    (tmp_path / "a.dcm").write_bytes(part10(Image("1.2.3.1.7"), tail=hidden))
    assert outcomes(layout, tmp_path / "a.dcm") == {"a.dcm": "imported"}
    (arrived,) = kept(layout)
    assert read_header(arrived).uids.sop_instance == "1.2.3.1.7"


def test_a_zip_bomb_ends_before_it_fills_the_disk(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "ZIP_FREE_BYTES", 1 << 20)
    members = {"a.dcm": part10(Image("1.2.3.1.1")), "bomb": bytes(64 << 20), "z.dcm": part10(Image("1.2.3.1.2"))}
    found = outcomes(layout, zipped(tmp_path / "a.zip", members))
    assert "imported" in found.values()
    assert "refused" in found.values()
    assert left_behind(layout) == []


def test_a_member_that_lies_about_its_size_is_counted_as_it_is_written(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "ZIP_FREE_BYTES", 1 << 20)
    file = zipped(tmp_path / "a.zip", {"bomb": bytes(64 << 20)})
    lie = file.read_bytes().replace(struct.pack("<L", 64 << 20), struct.pack("<L", 100))
    file.write_bytes(lie)
    assert "imported" not in outcomes(layout, file).values()
    assert left_behind(layout) == []


def test_an_encrypted_member_is_refused(layout: Layout, tmp_path: Path) -> None:
    content = bytearray(zipped(tmp_path / "a.zip", {"a.dcm": part10(Image("1.2.3.1.1"))}).read_bytes())
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    assert "imported" not in outcomes(layout, tmp_path / "a.zip").values()


def test_a_zip_with_too_many_members_is_refused(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "ZIP_ENTRY_LIMIT", 3)
    assert outcomes(layout, zipped(tmp_path / "a.zip", {f"{k}": b"x" for k in range(4)})) == {"a.zip": "refused"}


SOUND = io.BytesIO()
with zipfile.ZipFile(SOUND, "w", zipfile.ZIP_DEFLATED) as _archive:
    _archive.writestr("a.dcm", part10(Image("1.2.3.1.1")))
    _archive.writestr("ü/b.dcm", part10(Image("1.2.3.1.2")))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, len(SOUND.getvalue()) - 1), st.integers(0, 255)), min_size=1, max_size=6)
)
@example(changes=[(30 + len("a.dcm"), 0xFF), (31 + len("a.dcm"), 0xFF), (32 + len("a.dcm"), 0xFF)])
def test_a_damaged_zip_stops_nobody(layout: Layout, tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    content = bytearray(SOUND.getvalue())
    for place, value in changes:
        content[place] = value
    (tmp_path / "a.zip").write_bytes(content)
    (tmp_path / "b.dcm").write_bytes(part10(Image("1.2.3.1.7")))
    found = [one.outcome for one in import_paths(layout, [tmp_path / "a.zip", tmp_path / "b.dcm"], door="import")]
    assert found[-1] is Outcome.IMPORTED
    assert len(found) >= 2
    assert left_behind(layout) == []


# ------------------------------------------------------------------------------------------- the child


def run_child(layout: Layout, *paths: Path) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-m", "ctnode.flow.importing", "--root", str(layout.root)],
        input=json.dumps([str(path) for path in paths]).encode(), capture_output=True, check=False,
    )  # fmt: skip
    assert done.stderr == b""
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_child_removes_what_came_in_whole_and_keeps_the_rest(layout: Layout, tmp_path: Path) -> None:
    good = tmp_path / "good.dcm"
    good.write_bytes(part10(Image("1.2.3.1.1")))
    bad = tmp_path / os.fsdecode(b"bad \xff.txt")
    bad.write_bytes(b"no DICOM")
    mixed = zipped(
        tmp_path / "mixed.zip", {"a": part10(Image("1.2.3.1.2")), "b": part10(Image("1.2.3.1.3", series=""))}
    )
    answers = run_child(layout, good, bad, mixed)
    assert [answer["imported"] for answer in answers] == [1, 0, 1]
    assert not good.exists()
    assert bad.exists()
    assert mixed.exists()
    assert len(kept(layout)) == 2
