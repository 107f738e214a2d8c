"""Pixels of one image to stored values: the bits as they were written, before any rescale.

Native pixels are read straight from their place in the file; encapsulated ones go through pydicom's decoders. The
size that the header promises is compared with what is there before anything is allocated.
"""

from __future__ import annotations

import os
import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from ctnode.ct.source import DEFLATED, NATIVE, UNDEFINED_LENGTH, Frame, inflated
from ctnode.words import Refusal

Stored = npt.NDArray[np.uint16 | np.int16]
_Raw = npt.NDArray[Any]

_JPEG_FAMILY: Final = "1.2.840.10008.1.2.4."
# Which plug-in of pydicom decodes what, and the package it comes from. One decoder for each syntax: GDCM ends the whole
# process on some damaged JPEG 2000 streams, so it gets only what nothing else decodes.
_DECODERS: Final = {
    "1.2.840.10008.1.2.4.50": ("pillow", "Pillow"),
    "1.2.840.10008.1.2.4.57": ("gdcm", "python-gdcm"),
    "1.2.840.10008.1.2.4.70": ("gdcm", "python-gdcm"),
    "1.2.840.10008.1.2.4.80": ("pyjpegls", "pyjpegls"),
    "1.2.840.10008.1.2.4.81": ("pyjpegls", "pyjpegls"),
    "1.2.840.10008.1.2.4.90": ("pylibjpeg", "pylibjpeg-openjpeg"),
    "1.2.840.10008.1.2.4.91": ("pylibjpeg", "pylibjpeg-openjpeg"),
    "1.2.840.10008.1.2.4.201": ("pylibjpeg", "pylibjpeg-openjpeg"),
    "1.2.840.10008.1.2.4.202": ("pylibjpeg", "pylibjpeg-openjpeg"),
    "1.2.840.10008.1.2.4.203": ("pylibjpeg", "pylibjpeg-openjpeg"),
    "1.2.840.10008.1.2.5": ("pylibjpeg", "pylibjpeg-rle"),
}


def stored_values(frame: Frame, *, largest_side: int = 8192) -> Stored:
    """Return ``(rows, columns)`` stored values, unused bits as they are in the file.

    The dtype is uint16 or int16 by PixelRepresentation; 8-bit images become 16-bit ones.

    Raises
    ------
    Refusal
        Codes ``BAD_PIXELS`` (size, length, bits), ``NO_DECODER`` (the message names transfer syntax and package).
    """
    if not (0 < frame.rows <= largest_side and 0 < frame.columns <= largest_side):
        raise _bad(frame, f"is {frame.rows} x {frame.columns} pixels large")
    if frame.bits_allocated not in (8, 16) or not frame.high_bit < frame.bits_allocated:
        raise _bad(frame, f"has {frame.bits_allocated} bits allocated with high bit {frame.high_bit}")
    if not 0 < frame.bits_stored <= frame.high_bit + 1:
        raise _bad(frame, f"has {frame.bits_stored} bits stored with high bit {frame.high_bit}")
    values = _native(frame) if frame.transfer_syntax in NATIVE else _encapsulated(frame)
    stored: Stored = values.astype(np.int16 if frame.signed else np.uint16, copy=False)
    return stored


def _bad(frame: Frame, what: str) -> Refusal:
    return Refusal(f"{frame.name} {what}", code="BAD_PIXELS")


def _dtype(frame: Frame) -> np.dtype[Any]:
    kind = "i" if frame.signed else "u"
    return np.dtype(f"{'<' if frame.little_endian else '>'}{kind}{frame.bits_allocated // 8}")


def _native(frame: Frame) -> _Raw:
    expected = frame.rows * frame.columns * frame.bits_allocated // 8
    # PS3.5 7.1.1: a value of odd length carries one byte of padding; anything else does not fit the header.
    if frame.pixel_length not in (expected, expected + expected % 2):
        raise _bad(frame, f"has {frame.pixel_length} bytes of pixels where its header promises {expected}")
    if frame.transfer_syntax == DEFLATED:
        data = inflated(frame.path)[frame.pixel_offset : frame.pixel_offset + expected]
    else:
        with frame.path.open("rb") as file:
            data = os.pread(file.fileno(), expected, frame.pixel_offset)
    if len(data) != expected:
        raise _bad(frame, f"is cut off after {len(data)} of {expected} bytes of pixels")
    values = np.frombuffer(data, dtype=_dtype(frame)).reshape(frame.rows, frame.columns)
    # 8 bits inside 16-bit big endian words (OW) cannot be told from OB here, so they are refused.
    if frame.bits_allocated == 8 and not frame.little_endian:
        raise _bad(frame, "has 8-bit pixels in big endian order")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _encapsulated(frame: Frame) -> _Raw:
    if frame.pixel_length != UNDEFINED_LENGTH:
        raise _bad(frame, "has pixels that are not encapsulated, as its transfer syntax demands")
    name = UID(frame.transfer_syntax).name
    plugin, package = _DECODERS.get(frame.transfer_syntax, ("", ""))
    if not plugin:
        raise Refusal(
            f"the pixels of {frame.name} are in transfer syntax {name} ({frame.transfer_syntax})",
            code="NO_DECODER",
            hint="none of the installed packages decodes it; send the series in another transfer syntax",
        )
    size = frame.path.stat().st_size - frame.pixel_offset
    with frame.path.open("rb") as file:
        encoded = os.pread(file.fileno(), size, frame.pixel_offset)
    try:
        codestream = next(generate_frames(encoded, number_of_frames=1))
    except Exception:  # noqa: BLE001 - hostile bytes: whatever is raised, this image has no pixels
        raise _bad(frame, "has damaged encapsulated pixels") from None
    expected = frame.rows, frame.columns, 1
    if frame.transfer_syntax.startswith(_JPEG_FAMILY) and (declared := codestream_size(codestream)) != expected:
        raise _bad(frame, f"holds a codestream of {declared} where its header says {expected} (rows, columns, samples)")
    try:
        values, _ = get_decoder(UID(frame.transfer_syntax)).as_array(
            encoded, index=0, raw=True, decoding_plugin=plugin, **_options(frame)
        )
    except Exception:  # noqa: BLE001 - each decoder raises its own kind of error
        raise Refusal(
            f"no decoder took the pixels of {frame.name} in transfer syntax {name} ({frame.transfer_syntax})",
            code="NO_DECODER",
            hint=f"the package {package} decodes it, unless it is not installed or the pixels are damaged",
        ) from None
    if values.shape != (frame.rows, frame.columns) or values.dtype.itemsize * 8 != frame.bits_allocated:
        raise _bad(frame, "was decoded to another size than its header says")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _options(frame: Frame) -> dict[str, Any]:
    return {
        "rows": frame.rows,
        "columns": frame.columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": frame.photometric,
        "bits_allocated": frame.bits_allocated,
        "bits_stored": frame.bits_stored,
        "pixel_representation": int(frame.signed),
        "pixel_keyword": "PixelData",
    }


def codestream_size(codestream: bytes) -> tuple[int, int, int] | None:
    """Return ``(rows, columns, samples)`` that a JPEG, JPEG-LS or JPEG 2000 codestream declares, None if none.

    A few bytes can declare a picture that fills the memory, and the decoders allocate what they declare.
    """
    if codestream[:4] == b"\xff\x4f\xff\x51" and len(codestream) >= 42:  # ISO 15444-1 A.5.1: SIZ
        right, bottom, left, top = struct.unpack_from(">4I", codestream, 8)
        samples = struct.unpack_from(">H", codestream, 40)[0]
        return bottom - top, right - left, samples
    position = 2
    while position + 10 <= len(codestream) and codestream[position] == 0xFF:  # ISO 10918-1 B.2.2: SOFn
        marker = codestream[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns, samples = struct.unpack_from(">2HB", codestream, position + 5)
            return rows, columns, samples
        position += 2 + struct.unpack_from(">H", codestream, position + 2)[0]
    return None
