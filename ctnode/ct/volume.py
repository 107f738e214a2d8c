"""Images to one volume in Hounsfield units: placed, rescaled frame by frame, repaired where it can be (R8 to R26)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt

from ctnode.ct.geometry import Placement, place
from ctnode.ct.grid import SourceImage, Volume
from ctnode.ct.parallel import Decode, decoder
from ctnode.ct.repair import Plane, carry_out
from ctnode.ct.sanity import suspicion
from ctnode.ct.source import Frame, attributes, in_order, read_header
from ctnode.ct.technique import technique
from ctnode.ct.values import PADDING_HU, DoesNotFit, Mask, check_modality, is_whole, read_values
from ctnode.words import Issue, Severity, VolumeStatus

HU: Final = "HU"

# A volume with one of these has places where nothing was measured, or no known extent: it is not quantified.
UNMEASURABLE: Final = frozenset({"INCOMPLETE", "SINGLE_SLICE", "TOO_FEW_SLICES"})

# JPEG baseline and extended; the others can be lossless and say so in the header.
_LOSSY: Final = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})

# Enhanced CT and Legacy Converted Enhanced CT.
_MULTIFRAME: Final = frozenset({"1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"})

# Values of ImageType 4 that are maps of something else than attenuation (PS3.3 C.8.15.3.10 and PS3.17 JJJJ).
_MATERIALS: Final = frozenset(
    {"MAT_SPECIFIC", "MAT_FRACTIONAL", "MAT_VALUE_BASED", "EFF_ATOMIC_NUM", "ELECTRON_DENSITY", "MATERIAL"}
)
_UNSPECIFIED: Final = "US"

_Voxels = npt.NDArray[np.int16] | npt.NDArray[np.float32]


def placement_of(frames: Sequence[Frame]) -> Placement:
    """Return where ``frames``, one for each position, put their voxels; raises what ``geometry.place`` raises."""
    first = frames[0]
    assert first.orientation is not None
    assert first.pixel_spacing_mm is not None
    positions = np.array([frame.position_mm for frame in frames], dtype=np.float64)
    return place(
        first.orientation, positions, first.pixel_spacing_mm, first.rows, first.columns,
        thickness_mm=first.thickness_mm,
    )  # fmt: skip


def in_space(frames: Iterable[Frame]) -> list[Frame]:
    """Return ``frames`` in an order that depends on nothing but what they are (R26)."""
    return sorted(frames, key=lambda frame: (frame.position_mm or (), in_order(frame)))


def build(
    chosen: Sequence[Frame], issues: Sequence[Issue], digests: Iterable[str], *, threads: int | None = None
) -> Volume:
    """Return the volume that ``chosen`` form.

    Parameters
    ----------
    chosen
        One image for each position (``ctnode.ct.select``), in any order.
    issues
        What selection noted; a warning makes the volume REPAIRED.
    digests
        Digests of all data sets of the series, also of those left out.
    threads
        How many frames are decoded at once; by default as many as this process has processors, 8 at most.

    Raises
    ------
    Refusal
        Codes of ``geometry.place``, ``decode.stored_values`` and ``values.read_values``, and ``NO_RESCALE``.
    """
    frames = in_space(chosen)
    for frame in frames:
        check_modality(frame)
    placement = placement_of(frames)
    ordered = [frames[index] for index in placement.order]
    threads = threads or min(8, len(os.sched_getaffinity(0)))
    with decoder(ordered, threads) as decode:
        filling = _Filling(ordered, placement, threads, decode)
        voxels = filling.voxels()
    padding = filling.padding()
    unit = unit_of(ordered[0])
    found = [*issues, *placement.issues, *filling.remarks(), *_remarks(ordered, unit)]
    if unit == HU and (odd := suspicion(voxels, padding)):
        found.append(Issue("HU_SUSPECT", Severity.WARNING, f"{odd}; left as it is"))
    repaired = any(issue.severity is not Severity.INFO for issue in found)
    header = read_header(ordered[0])
    return Volume(
        voxels=voxels,
        grid=placement.grid,
        padding=padding,
        unit=unit,
        status=VolumeStatus.REPAIRED if repaired else VolumeStatus.EXACT,
        issues=tuple(found),
        header=header,
        sop_uids=filling.sop_uids(),
        input_digest=hashlib.sha256("\n".join(sorted(set(digests))).encode()).hexdigest(),
        technique=technique(attributes(header, ordered[0].index)),
        sources=tuple(map(_source_of, ordered)),
    )


def unit_of(frame: Frame) -> str:
    """Return what the values are in: HU unless RescaleType or the kind of image says otherwise (rule R22)."""
    if frame.rescale_type in ("", HU) and _MATERIALS.intersection(frame.image_type[3:]):
        return _UNSPECIFIED
    return frame.rescale_type or HU


def _source_of(frame: Frame) -> SourceImage:
    """Return how derived objects refer to ``frame``; one frame of a data set with functional groups has a number."""
    number = frame.index + 1 if frame.sop_class in _MULTIFRAME else 0
    return SourceImage(frame.sop_class, frame.sop_uid, number, frame.rows, frame.columns, frame.position_mm or ())


def _remarks(frames: Sequence[Frame], unit: str) -> Iterable[Issue]:
    if frames[0].image_type[0] != "ORIGINAL":
        yield Issue("DERIVED", Severity.INFO, "the images are derived from others, by their ImageType")
    if unit != HU:
        yield Issue("NOT_HU", Severity.INFO, f"the values are in {unit}, not HU, and are not measured")


class _Filling:
    """Decode the frames of a volume, slice by slice, in threads; straight into it, or through its plan."""

    def __init__(self, frames: Sequence[Frame], placement: Placement, threads: int, decode: Decode) -> None:
        self._decode = decode
        self._frames = frames
        self._plan = placement.plan
        self._shape = placement.grid.shape
        self._threads = threads
        self._masks: dict[int, npt.NDArray[np.uint8]] = {}
        self._notes: dict[str, set[int]] = {}

    def voxels(self) -> _Voxels:
        """Return int16 if every value fits and every slope is integral, else float32 (rule R23)."""
        if all(map(is_whole, self._frames)):
            try:
                integers = np.empty(self._shape, dtype=np.int16)
                self._fill(integers)
            except DoesNotFit:
                del integers
            else:
                return integers
        floats = np.empty(self._shape, dtype=np.float32)
        self._fill(floats)
        return floats

    def _fill(self, voxels: _Voxels) -> None:
        self._masks.clear()
        self._notes.clear()
        if self._plan is not None:

            def read(index: int) -> tuple[Plane, Mask | None]:
                frame = self._frames[index]
                plane = np.empty((frame.rows, frame.columns), dtype=voxels.dtype)
                mask = self._read(index, plane)
                return plane.astype(np.float32, copy=False), mask

            carry_out(self._plan, read, voxels, self._keep, PADDING_HU, threads=self._threads)
            return

        def fill(index: int) -> None:
            mask = self._read(index, voxels[index])
            if mask is not None:
                self._keep(index, mask)

        _all_of(fill, len(self._frames), self._threads)

    def _read(self, index: int, out: _Voxels) -> Mask | None:
        mask, notes = read_values(self._frames[index], out, self._decode)
        for code in notes:
            self._notes.setdefault(code, set()).add(index)
        return mask

    def _keep(self, index: int, mask: Mask) -> None:
        if mask.any():
            self._masks[index] = np.packbits(mask)

    def padding(self) -> Mask | None:
        """Return ``(z, y, x)`` bool of what was found, None where nothing was."""
        if not self._masks:
            return None
        padding = np.zeros(self._shape, dtype=np.bool_)
        for index, bits in self._masks.items():
            plane = np.unpackbits(bits, count=padding[index].size)
            padding[index] = plane.reshape(padding[index].shape).view(np.bool_)
        return padding

    def _own(self) -> list[int | None]:
        """Return for each slice of the grid the source slice that it shows, None where it is made of two."""
        if self._plan is None:
            return list(range(len(self._frames)))
        return [
            int(lower) if share == 0.0 else None
            for lower, share in zip(self._plan.lower, self._plan.share, strict=True)
        ]

    def sop_uids(self) -> tuple[str, ...]:
        """Return the SOP Instance UID of each slice that is a source slice as it was, '' for the others."""
        is_tilted = self._plan is not None and self._plan.is_tilted
        return tuple("" if index is None or is_tilted else self._frames[index].sop_uid for index in self._own())

    def _slices(self, indices: Iterable[int]) -> tuple[int, ...]:
        wanted = set(indices)
        return tuple(place for place, index in enumerate(self._own()) if index in wanted)

    def remarks(self) -> Iterable[Issue]:
        """Yield what decoding noticed; a list of all slices is written as none."""
        lossy = [index for index, frame in enumerate(self._frames) if frame.lossy or frame.transfer_syntax in _LOSSY]
        if lossy:
            text = "the pixels were compressed with loss before they came here"
            yield Issue("LOSSY", Severity.INFO, text, self._slices(lossy))
        assumed = self._notes.get("PADDING_ASSUMED")
        if assumed:
            text = f"one value under -1024 HU in all corners, taken as outside of the scan and set to {PADDING_HU}"
            yield Issue("PADDING_ASSUMED", Severity.INFO, text, self._slices(assumed))
        inside = self._notes.get("PADDING_INSIDE")
        if inside:
            text = "pixels have the declared padding value without touching the outside; kept as measured"
            yield Issue("PADDING_INSIDE", Severity.INFO, text, self._slices(inside))


def _all_of(work: Callable[[int], None], count: int, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        tasks = [pool.submit(work, index) for index in range(count)]
        try:
            # Asked in the order of space, so that of several faults the same one is always reported.
            for task in tasks:
                task.result()
        finally:
            pool.shutdown(cancel_futures=True)
