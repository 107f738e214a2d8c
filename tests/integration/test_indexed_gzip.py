"""Gzip files with an index: ordinary for every reader, and each chunk can be read alone."""

from __future__ import annotations

import gzip
import io
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isal import igzip

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
