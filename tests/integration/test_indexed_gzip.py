"""Gzip files with an index: ordinary for every reader, and each chunk can be read alone."""

from __future__ import annotations

import gzip
import io
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isal import igzip, isal_zlib

from ctnode.ct.grid import Grid
from ctnode.results.indexed_gzip import MOST_CHUNKS, Damaged, read_chunk, read_index, write_indexed
from ctnode.results.nifti import write_nifti
from ctnode.web.volumes import PLANES, NoVolume, Unpacked

SHAPE = (40, 96, 80)


def written(head: bytes, chunks: list[bytes], chunk_bytes: int) -> bytes:
    file = io.BytesIO()
    write_indexed(file, head, chunks, count=len(chunks), chunk_bytes=chunk_bytes)
    return file.getvalue()


@given(
    head=st.binary(min_size=1, max_size=400),
    # Chunks that repeat each other would be told by what stood before, if the compressor remembered it.
    alphabet=st.lists(st.binary(min_size=64, max_size=64), min_size=1, max_size=3),
    picks=st.lists(st.integers(0, 2), min_size=1, max_size=8),
    hurt=st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)),
)
def test_it_is_an_ordinary_file_and_a_chunk_read_alone_is_what_was_written_or_refused(
    head: bytes, alphabet: list[bytes], picks: list[int], hurt: tuple[float, int]
) -> None:
    chunks = [alphabet[pick % len(alphabet)] for pick in picks]
    content = written(head, chunks, 64)
    assert gzip.decompress(content) == igzip.decompress(content) == head + b"".join(chunks)
    single = zlib.decompressobj(31)
    assert single.decompress(content)
    assert (single.eof, single.unused_data) == (True, b""), "it is one member"
    damaged = bytearray(content)
    damaged[int(hurt[0] * len(content))] ^= hurt[1]
    for bytes_on_disk, is_whole in ((content, True), (bytes(damaged), False)):
        with tempfile.TemporaryFile() as file:
            file.write(bytes_on_disk)
            file.flush()
            index = read_index(file.fileno())
            if index is None or len(index.checks) != len(chunks) + 1:
                assert not is_whole
                continue
            for number, chunk in enumerate([head, *chunks]):
                try:
                    assert read_chunk(file.fileno(), index, number) == chunk
                except Damaged:
                    assert not is_whole


def test_the_bytes_do_not_tell_where_in_memory_the_compressor_was(monkeypatch: pytest.MonkeyPatch) -> None:
    # ISA-L hashes (its own address >> 16) in place of four bytes of the content: a chunk that begins with just these
    # packs differently at this address and at any other. They suffer at 1; no other place may either.
    places = [1, 1, 1, *range(2, 25)]
    make = isal_zlib.compressobj
    first, second = ([make(1, isal_zlib.DEFLATED, -15) for _ in range(len(places) + 1)] for _ in range(2))

    def chunk(place: int, compressor: object) -> bytes:
        state = id(compressor) + 64
        value = struct.pack("<I", state >> 16 & 0xFFFFFFFF)
        between = bytes(number**2 // 3 % 97 for number in range(47))
        return (bytes(range(100, 100 + place)) + value + between + value).ljust(40_000, b"\0")

    chunks = [chunk(place, compressor) for place, compressor in zip(places, first, strict=False)]
    files = []
    for compressors in (first, second):
        left = iter(compressors)
        monkeypatch.setattr(isal_zlib, "compressobj", lambda *_, left=left: next(left))
        files.append(written(chunks[0], chunks[1:], 40_000))
        assert len(list(left)) < len(compressors), "they were used"
    assert files[0] == files[1]


PROGRAM = """
import hashlib, io, pathlib, sys
from ctnode.results.indexed_gzip import write_indexed
content, file = pathlib.Path(sys.argv[1]).read_bytes(), io.BytesIO()
chunks = [content[at : at + 100_000] for at in range(0, len(content), 100_000)]
write_indexed(file, chunks[0], chunks[1:], count=len(chunks) - 1, chunk_bytes=100_000)
print(hashlib.sha256(file.getvalue()).hexdigest())
"""


def test_a_chunk_is_packed_the_same_wherever_it_stands_and_whatever_memory_held(tmp_path: Path) -> None:
    # Noise around a mean as in CT, and much of the same.
    dice = np.random.default_rng(7)
    noise = [dice.normal(40, 12, 50_000).astype("<i2").tobytes() for _ in range(3)]
    chunks = [noise[0], noise[1], noise[0], bytes(100_000), noise[0][:50_000] + bytes(50_000), noise[2], noise[0]]

    def packed(some: list[bytes]) -> list[bytes]:
        content = written(some[0], some[1:], 100_000)
        path = tmp_path / "file.gz"
        path.write_bytes(content)
        with path.open("rb") as file:
            index = read_index(file.fileno())
        assert index is not None
        return [content[start:end] for start, end in pairwise(index.starts)]

    once = packed(chunks)
    assert once[0] == once[2] == once[6]
    order = dice.permutation(len(chunks))
    assert packed([chunks[number] for number in order]) == [once[number] for number in order]
    content = tmp_path / "content"
    content.write_bytes(b"".join(chunks))
    for filling in ("1", "170"):
        # glibc fills what it gives out and takes back with these bytes; other libraries take no notice.
        other = subprocess.run(
            [sys.executable, "-c", PROGRAM, content],
            env=os.environ | {"PYTHONMALLOC": "malloc", "MALLOC_PERTURB_": filling},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        assert other.stdout.strip() == sha256(written(chunks[0], chunks[1:], 100_000)).hexdigest()


def test_a_file_without_an_index_has_none(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    content = written(b"head", [b"a" * 10, b"b" * 10], 10)
    for bytes_on_disk in (
        b"",
        content[:15],
        content[:-12],
        igzip.compress(b"a" * 100),
        content[:12] + b"XX" + content[14:],
    ):
        path.write_bytes(bytes_on_disk)
        with path.open("rb") as file:
            assert read_index(file.fileno()) is None
    with pytest.raises(ValueError, match="room for less than"):
        write_indexed(io.BytesIO(), b"", [], count=MOST_CHUNKS, chunk_bytes=1)
    with pytest.raises(ValueError, match="1 chunks where 2 were announced"):
        write_indexed(io.BytesIO(), b"", [b"a"], count=2, chunk_bytes=1)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, -1)])
def test_planes_are_the_same_with_and_without_the_index_whichever_way_they_are_stored(
    tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    affine = np.zeros((4, 4))
    for axis in range(3):
        affine[order[axis], axis] = signs[axis] * (1.0 + axis)
    affine[3, 3] = 1.0
    voxels = np.random.default_rng(3).integers(-1000, 1000, SHAPE, dtype=np.int16)
    new, old = tmp_path / "ct.nii.gz", tmp_path / "old.nii.gz"
    write_nifti(new, voxels, Grid(SHAPE, affine), description="")
    old.write_bytes(igzip.compress(igzip.decompress(new.read_bytes())))
    for plane in PLANES:
        alone, streamed = Unpacked(new, tmp_path), Unpacked(old, tmp_path)
        axis = PLANES[::-1].index(plane)
        for index in (streamed.geometry.shape[axis] - 1, 17, 0):
            assert (alone.plane(plane, index) == streamed.plane(plane, index)).all()


def test_a_plane_is_read_alone_and_damage_elsewhere_costs_only_what_needs_it(tmp_path: Path) -> None:
    path = tmp_path / "ct.nii.gz"
    voxels = np.random.default_rng(4).integers(-1000, 1000, SHAPE, dtype=np.int16)
    write_nifti(path, voxels, Grid(SHAPE, np.diag([1.0, 1.0, 2.0, 1.0])), description="")
    with path.open("r+b") as file:
        index = read_index(file.fileno())
        assert index is not None
        assert len(index.checks) == 4
        os.pwrite(file.fileno(), b"\xff" * 100, index.starts[2])
    volume = Unpacked(path, tmp_path)
    per_chunk = index.chunk_bytes // (2 * SHAPE[1] * SHAPE[2])
    assert (volume.plane("axial", 2 * per_chunk) == voxels[2 * per_chunk]).all()
    for plane, at in (("axial", per_chunk), ("coronal", 5), ("sagittal", 5)):
        with pytest.raises(NoVolume, match="damaged"):
            volume.plane(plane, at)
