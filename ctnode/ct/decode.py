"""Pixels of one image to stored values: the bits as they were written, before any rescale.

Native pixels are read straight from their place in the file; encapsulated ones go through pydicom's decoders. The
size that the header promises is compared with what is there before anything is allocated.
"""

from __future__ import annotations

import os
import sys
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from ctnode.ct.dataset import DEFLATED, NATIVE, UNDEFINED_LENGTH, inflate, read_meta
from ctnode.ct.encapsulated import codestream, codestream_size
from ctnode.ct.source import Frame
from ctnode.words import Refusal

Stored = npt.NDArray[np.uint16 | np.int16]
_Raw = npt.NDArray[Any]

EXTENDED: Final = "1.2.840.10008.1.2.4.51"
_JPEG_FAMILY: Final = "1.2.840.10008.1.2.4."
# Which plug-in of pydicom decodes what, and the package it comes from. One decoder for each syntax: GDCM ends the whole
# process on some damaged JPEG 2000 streams, so it gets only what nothing else decodes.
_DECODERS: Final = {
    "1.2.840.10008.1.2.4.50": ("pillow", "Pillow"),
    EXTENDED: ("gdcm", "python-gdcm"),
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
    one = frame.rows * frame.columns * frame.bits_allocated // 8
    expected = one * frame.frames
    # PS3.5 7.1.1: a value of odd length carries one byte of padding; anything else does not fit the header.
    if frame.pixel_length not in (expected, expected + expected % 2):
        raise _bad(frame, f"has {frame.pixel_length} bytes of pixels where its header promises {expected}")
    if frame.index >= frame.frames:
        raise _bad(frame, f"is beyond the {frame.frames} frames that its header promises")
    offset = frame.pixel_offset + frame.index * one
    if frame.transfer_syntax == DEFLATED:
        data = _inflated(frame.path, frame.digest, frame.pixel_offset + expected)[offset : offset + one]
    else:
        with frame.path.open("rb") as file:
            data = os.pread(file.fileno(), one, offset)
    if len(data) != one:
        raise _bad(frame, f"is cut off after {len(data)} of {one} bytes of pixels")
    values = np.frombuffer(data, dtype=_dtype(frame)).reshape(frame.rows, frame.columns)
    # 8 bits inside 16-bit big endian words (OW) cannot be told from OB here, so they are refused.
    if frame.bits_allocated == 8 and not frame.little_endian:
        raise _bad(frame, "has 8-bit pixels in big endian order")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


# One data set is kept, since all frames of a file lie in it; its size was promised by the header and checked.
@lru_cache(maxsize=1)
def _inflated(path: Path, _digest: str, most_bytes: int) -> bytes:
    with path.open("rb") as file:
        return inflate(file, read_meta(file)[0], most_bytes)


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
    if frame.index >= frame.frames:
        raise _bad(frame, f"is beyond the {frame.frames} frames that its header promises")
    encoded = codestream(frame)
    expected = frame.rows, frame.columns, 1
    if frame.transfer_syntax.startswith(_JPEG_FAMILY) and (declared := codestream_size(encoded)) != expected:
        raise _bad(frame, f"holds a codestream of {declared} where its header says {expected} (rows, columns, samples)")
    try:
        values = (
            _gdcm_extended(encoded, frame) if frame.transfer_syntax == EXTENDED else _plugin(encoded, frame, plugin)
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


def _plugin(encoded: bytes, frame: Frame, plugin: str) -> _Raw:
    values, _ = get_decoder(UID(frame.transfer_syntax)).as_array(
        encapsulate([encoded], has_bot=False), index=0, raw=True, decoding_plugin=plugin, **_options(frame)
    )
    decoded: _Raw = values
    return decoded


def _gdcm_extended(encoded: bytes, frame: Frame) -> _Raw:
    """Decode JPEG Extended with GDCM itself: the plug-ins of pydicom refuse more than 8 bits of it."""
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(encoded)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((frame.columns, frame.rows, 1))
    image.SetDataElement(element)
    grey = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(grey))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(EXTENDED)))
    bits = frame.bits_allocated, frame.bits_stored, frame.bits_stored - 1, int(frame.signed)
    image.SetPixelFormat(gdcm.PixelFormat(1, *bits))
    with _silence:
        # GDCM gives the bytes as text.
        data = image.GetBuffer().encode("utf-8", "surrogateescape")
    return np.frombuffer(data, dtype=_dtype(frame)).reshape(frame.rows, frame.columns)


class _Silence:
    """Keep what libjpeg prints about 12-bit data away from the terminal; several threads may be inside at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = -1

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                sys.stderr.flush()
                self._saved = os.dup(2)
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 2)
                os.close(nowhere)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                os.dup2(self._saved, 2)
                os.close(self._saved)


_silence = _Silence()


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
