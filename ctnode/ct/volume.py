"""Images to one volume in Hounsfield units: placed, rescaled frame by frame, padding told from air (R19 to R26)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.multival import MultiValue

from ctnode.ct.decode import Stored, stored_values
from ctnode.ct.geometry import place
from ctnode.ct.grid import Volume
from ctnode.ct.source import Frame, read_header, readable
from ctnode.words import Issue, Refusal, Severity, VolumeStatus

HU: Final = "HU"
PADDING_HU: Final = -1024

# dcm2niix's BIDS names; technique only, nothing that names a person, a place or a day.
_TECHNIQUE: Final = {
    "Modality": "Modality",
    "Manufacturer": "Manufacturer",
    "ManufacturerModelName": "ManufacturersModelName",
    "BodyPartExamined": "BodyPartExamined",
    "PatientPosition": "PatientPosition",
    "ScanOptions": "ScanOptions",
    "KVP": "KVP",
    "XRayTubeCurrent": "XRayTubeCurrent",
    "ExposureTime": "ExposureTime",
    "Exposure": "XRayExposure",
    "ConvolutionKernel": "ConvolutionKernel",
    "SliceThickness": "SliceThickness",
    "SpiralPitchFactor": "SpiralPitchFactor",
    "ReconstructionDiameter": "ReconstructionDiameter",
    "GantryDetectorTilt": "GantryDetectorTilt",
    "ImageType": "ImageType",
}

# JPEG baseline and extended; the others can be lossless and say so in the header.
_LOSSY: Final = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})

_Voxels = npt.NDArray[np.int16] | npt.NDArray[np.float32]


class _DoesNotFit(Exception):
    """A value of this frame does not fit int16; the whole volume becomes float32."""


def build(chosen: Sequence[Frame], issues: Sequence[Issue], digests: Iterable[str], *, threads: int = 2) -> Volume:
    """Return the volume that ``chosen`` form.

    Parameters
    ----------
    chosen
        One image for each position (``ctnode.ct.select.choose``), in any order.
    issues
        What selection noted; a warning makes the volume REPAIRED.
    digests
        Digests of all data sets of the series, also of those left out.

    Raises
    ------
    Refusal
        Codes of ``geometry.place`` and ``decode.stored_values``, and ``NO_RESCALE``, ``MODALITY_LUT``.
    """
    frames = sorted(chosen, key=lambda frame: (frame.position_mm or (), frame.sop_uid, frame.digest))
    for frame in frames:
        _check_rescale(frame)
    first = frames[0]
    assert first.orientation is not None
    assert first.pixel_spacing_mm is not None
    positions = np.array([frame.position_mm for frame in frames], dtype=np.float64)
    placement = place(first.orientation, positions, first.pixel_spacing_mm, first.rows, first.columns)
    ordered = [frames[index] for index in placement.order]
    voxels, padding, assumed = _fill(ordered, threads)
    found = [*issues, *placement.issues, *_remarks(ordered, assumed)]
    repaired = any(issue.severity is not Severity.INFO for issue in found)
    header = read_header(ordered[0])
    return Volume(
        voxels=voxels,
        grid=placement.grid,
        padding=padding,
        unit=first.rescale_type or HU,
        status=VolumeStatus.REPAIRED if repaired else VolumeStatus.EXACT,
        issues=tuple(found),
        header=header,
        sop_uids=tuple(frame.sop_uid for frame in ordered),
        input_digest=hashlib.sha256("\n".join(sorted(set(digests))).encode()).hexdigest(),
        technique=technique(header),
    )


def _check_rescale(frame: Frame) -> None:
    if frame.has_lut:
        raise Refusal(f"{frame.name} has a Modality LUT, which cannot be read yet", code="MODALITY_LUT")
    if frame.slope is None or frame.intercept is None or frame.slope == 0:
        raise Refusal(f"{frame.name} has no RescaleSlope and RescaleIntercept that make sense", code="NO_RESCALE")


def _remarks(frames: Sequence[Frame], assumed: Sequence[int]) -> Iterable[Issue]:
    if frames[0].image_type[0] != "ORIGINAL":
        yield Issue("DERIVED", Severity.INFO, "the images are derived from others, by their ImageType")
    if frames[0].rescale_type not in ("", HU):
        text = f"the values are in {frames[0].rescale_type}, not HU, and are not measured"
        yield Issue("NOT_HU", Severity.INFO, text)
    lossy = tuple(index for index, frame in enumerate(frames) if frame.lossy or frame.transfer_syntax in _LOSSY)
    if lossy:
        yield Issue("LOSSY", Severity.INFO, "the pixels were compressed with loss before they came here", lossy)
    if assumed:
        text = f"one value under -1024 HU in all corners, taken as outside of the scan and set to {PADDING_HU}"
        yield Issue("PADDING_ASSUMED", Severity.INFO, text, tuple(assumed))


def _fill(frames: Sequence[Frame], threads: int) -> tuple[_Voxels, npt.NDArray[np.bool_] | None, list[int]]:
    """Decode all frames; int16 if every value fits and every slope is integral, else float32 (rule R23)."""
    shape = len(frames), frames[0].rows, frames[0].columns
    whole = all(float(frame.slope or 0).is_integer() and float(frame.intercept or 0).is_integer() for frame in frames)
    if whole:
        try:
            voxels = np.empty(shape, dtype=np.int16)
            return voxels, *_fill_with(frames, voxels, _as_int16, threads)
        except _DoesNotFit:
            del voxels
    floats = np.empty(shape, dtype=np.float32)
    return floats, *_fill_with(frames, floats, _as_float32, threads)


def _fill_with(
    frames: Sequence[Frame], voxels: _Voxels, rescale: Callable[..., None], threads: int
) -> tuple[npt.NDArray[np.bool_] | None, list[int]]:
    masks: dict[int, npt.NDArray[np.uint8]] = {}
    assumed: list[int] = []

    def fill(index: int) -> None:
        frame = frames[index]
        raw = stored_values(frame)
        stored = significant_bits(raw, frame)
        mask = declared_padding(raw, stored, frame)
        guess = assumed_padding(stored, frame)
        if guess is not None:
            assumed.append(index)
            mask = guess if mask is None else mask | guess
        rescale(stored, frame, mask, voxels[index])
        if mask is not None and mask.any():
            masks[index] = np.packbits(mask)

    with ThreadPoolExecutor(threads) as pool:
        tasks = [pool.submit(fill, index) for index in range(len(frames))]
        try:
            # Asked in the order of space, so that of several faults the same one is always reported.
            for task in tasks:
                task.result()
        finally:
            pool.shutdown(cancel_futures=True)
    if not masks:
        return None, []
    padding = np.zeros(voxels.shape, dtype=np.bool_)
    for index, bits in masks.items():
        padding[index] = np.unpackbits(bits, count=padding[index].size).reshape(padding[index].shape).view(np.bool_)
    return padding, sorted(assumed)


def significant_bits(raw: Stored, frame: Frame) -> Stored:
    """Return the values of BitsStored bits under HighBit, sign-extended; the other bits mean nothing (PS3.5 8.1.1)."""
    above = 15 - frame.high_bit if raw.dtype.itemsize == 2 else 0
    below = frame.high_bit + 1 - frame.bits_stored
    if above == 0 and below == 0:
        return raw
    # Up to the top and down again: an arithmetic shift of int16 brings its sign along, one of uint16 zeros.
    return (raw << above) >> (above + below)


def declared_padding(raw: Stored, stored: Stored, frame: Frame) -> npt.NDArray[np.bool_] | None:
    """Return ``(y, x)`` bool where a pixel is padding by its header, compared before any rescale (PS3.3 C.7.5.1.1.2).

    Senders write the value with the wrong sign (63536 for -2000), so it is read modulo 2^16; one that does not fit
    BitsStored is compared with all bits of the pixel.
    """
    if frame.padding is None:
        return None
    value = _wrapped(frame.padding, frame.signed)
    bits = frame.bits_stored
    lowest, highest = (-(1 << bits - 1), (1 << bits - 1) - 1) if frame.signed else (0, (1 << bits) - 1)
    pixels = stored if lowest <= value <= highest else raw
    mask: npt.NDArray[np.bool_]
    if frame.padding_limit is None:
        mask = pixels == value
        return mask
    limit = _wrapped(frame.padding_limit, frame.signed)
    mask = (pixels >= min(value, limit)) & (pixels <= max(value, limit))
    return mask


def _wrapped(value: int, signed: bool) -> int:
    value &= 0xFFFF
    return value - 0x10000 if signed and value >= 0x8000 else value


def assumed_padding(stored: Stored, frame: Frame) -> npt.NDArray[np.bool_] | None:
    """Return ``(y, x)`` bool where GE and others fill the outside of the reconstruction circle without saying so.

    The rule (R21): all four corners hold one value, and it is under -1024 HU, which nothing that was measured is.
    """
    assert frame.slope is not None
    assert frame.intercept is not None
    corner = int(stored[0, 0])
    if not (corner == int(stored[0, -1]) == int(stored[-1, 0]) == int(stored[-1, -1])):
        return None
    if corner * frame.slope + frame.intercept >= PADDING_HU or _is_padding(corner, frame):
        return None
    mask: npt.NDArray[np.bool_] = stored == corner
    return mask


def _is_padding(value: int, frame: Frame) -> bool:
    return frame.padding is not None and value == _wrapped(frame.padding, frame.signed)


def _as_int16(stored: Stored, frame: Frame, mask: npt.NDArray[np.bool_] | None, out: npt.NDArray[np.int16]) -> None:
    slope, intercept = int(frame.slope or 0), int(frame.intercept or 0)
    if mask is not None and mask.any():
        # The first pixel that counts stands in for padding, so that padding cannot decide what fits.
        counted = np.flatnonzero(~mask)
        neutral = stored.flat[counted[0]] if counted.size else stored.dtype.type(0)
        stored = np.where(mask, neutral, stored)
    ends = int(stored.min()) * slope + intercept, int(stored.max()) * slope + intercept
    if min(ends) < -32768 or max(ends) > 32767:
        raise _DoesNotFit
    # Arithmetic modulo 2^16 is exact here: every result was just shown to fit.
    np.multiply(stored.view(np.int16), np.array(slope & 0xFFFF, np.uint16).view(np.int16), out=out)
    np.add(out, np.array(intercept & 0xFFFF, np.uint16).view(np.int16), out=out)
    if mask is not None:
        out[mask] = PADDING_HU


def _as_float32(stored: Stored, frame: Frame, mask: npt.NDArray[np.bool_] | None, out: npt.NDArray[np.float32]) -> None:
    # One frame at a time in float64: 16-bit values times a decimal slope round once, on the way to float32.
    out[...] = stored * float(frame.slope or 0) + float(frame.intercept or 0)
    if mask is not None:
        out[mask] = PADDING_HU


def technique(header: Dataset, *, longest_text: int = 64) -> dict[str, object]:
    """Return the technique of the scan under dcm2niix's BIDS names; a value that cannot be read is left out."""
    found: dict[str, object] = {}
    for keyword, name in _TECHNIQUE.items():
        value = readable(header, keyword)
        if isinstance(value, MultiValue):
            found[name] = [_plain(part, longest_text) for part in value]
        elif value is not None and value != "":
            found[name] = _plain(value, longest_text)
    return {name: value for name, value in found.items() if value is not None}


def _plain(value: object, longest_text: int) -> object:
    if isinstance(value, (int, float)):
        number = float(value)
        return None if not np.isfinite(number) else int(number) if number.is_integer() else number
    return str(value)[:longest_text] if isinstance(value, str) else None
