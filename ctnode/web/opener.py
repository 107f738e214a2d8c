"""The child that opens stored objects for the web role: headers as JSON, frames, pictures; it may be stopped any time.

Orders come as JSON lines on standard input. Each answer on standard output is two lengths, a JSON object and raw
bytes: ``{"ok": {...}}`` or ``{"refused": why, "status": HTTP status}`` with a text that quotes no value.
Before the first order come two lengths of nought: it is ready.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import resource
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset
from pydicom.tag import BaseTag

from ctnode.config import Log
from ctnode.ct.dataset import DEFLATED, EXPLICIT_BIG, NATIVE, UNDEFINED_LENGTH, parse, read_meta
from ctnode.ct.decode import stored_values
from ctnode.ct.encapsulated import codestream
from ctnode.ct.source import Frame, attributes, read_file, read_header
from ctnode.ct.values import significant_bits
from ctnode.ct.window import Function, Window, apply, views_of
from ctnode.ops import log
from ctnode.ops.role import die_with_parent
from ctnode.web.openers import LENGTHS
from ctnode.words import Refusal

# A binary value over this is fetched by its BulkDataURI (PS3.18 F.2.6).
_INLINE_BYTES: Final = 1 << 12
_EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
_PIXELS: Final = "7FE00010"
_LARGEST_SIDE: Final = 4096
_COLOURS: Final = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "PALETTE COLOR"})

Answer = tuple[dict[str, Any], bytes]


class Refused(Exception):
    """The object has no such thing, or it cannot be shown."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


def metadata(order: dict[str, Any]) -> Answer:
    """Return the data set as DICOM JSON (PS3.18 F.2), pixels and long binary values as BulkDataURI."""
    with Path(order["path"]).open("rb") as file:
        start, syntax, _ = read_meta(file)
        dataset, _, length = parse(file, start, syntax)
    found: dict[str, Any] = {}
    # Iterating over the data set itself would convert all values, and one bad one would end it.
    for tag in list(dataset.keys()):
        name = f"{tag:08X}"
        made = _json_of(dataset, tag, f"{order['url']}/bulkdata/{name}")
        if made is not None:
            found[name] = made
    # JSON is UTF-8 whatever the file was (PS3.18 F.2).
    found["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}
    if order["series"]:
        found["0020000E"] = {"vr": "UI", "Value": [order["series"]]}
    if length != -1:
        bits = found.get("00280100", {}).get("Value", [16])[0]
        is_bytes = bits <= 8 or syntax not in NATIVE
        found[_PIXELS] = {"vr": "OB" if is_bytes else "OW", "BulkDataURI": f"{order['url']}/bulkdata/{_PIXELS}"}
    return {}, json.dumps(dict(sorted(found.items())), allow_nan=False).encode()


def _json_of(dataset: Dataset, tag: BaseTag, url: str) -> dict[str, Any] | None:
    """Return one attribute; None for a value that cannot be converted, which costs only its own attribute."""
    try:
        element = dataset[tag]
        if isinstance(element.value, bytes) and len(element.value) > _INLINE_BYTES:
            return {"vr": str(element.VR), "BulkDataURI": url}
        made: dict[str, Any] = element.to_json_dict(None, 1 << 62)
        json.dumps(made, allow_nan=False)
    except Exception:  # noqa: BLE001 - pydicom raises whatever it likes on hostile bytes, RecursionError too
        return None
    return made


def bulk(order: dict[str, Any]) -> Answer:
    """Return a long binary value; of native pixels where they lie in the file."""
    with Path(order["path"]).open("rb") as file:
        start, syntax, _ = read_meta(file)
        dataset, offset, length = parse(file, start, syntax)
    if order["tag"] == _PIXELS and length != -1:
        if syntax == DEFLATED or length == UNDEFINED_LENGTH:
            raise Refused(406, "these pixels are encapsulated or deflated: ask for frames")
        return {"range": [offset, length], "frames": 0}, b""
    tag = int(order["tag"], 16)
    value = dataset[tag].value if tag in dataset else None
    if not isinstance(value, bytes):
        raise Refused(404, "the object has no such bulk data")
    return {}, value


def frame(order: dict[str, Any]) -> Answer:
    """Return one frame as it is stored (where in the file, or its codestream), or decoded to native little endian."""
    one = _frame(order)
    if order["stored"] and one.transfer_syntax not in NATIVE:
        return {"transfer_syntax": one.transfer_syntax}, codestream(one)
    bits = one.rows * one.columns * one.samples * one.bits_allocated
    if one.transfer_syntax in NATIVE and one.transfer_syntax not in (DEFLATED, EXPLICIT_BIG) and bits % 8 == 0:
        size = bits // 8
        if size * one.frames > one.pixel_length:
            raise Refused(406, "the pixels are shorter than the header promises")
        place = [one.pixel_offset + one.index * size, size]
        return {"transfer_syntax": _EXPLICIT_LITTLE, "range": place}, b""
    values = _decoded(one)
    if one.bits_allocated == 1:
        return {"transfer_syntax": _EXPLICIT_LITTLE}, np.packbits(values.ravel(), bitorder="little").tobytes()
    if one.bits_allocated == 8:
        values = values.astype(np.int8 if one.signed else np.uint8, copy=False)
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return {"transfer_syntax": _EXPLICIT_LITTLE}, little.tobytes()


def rendered(order: dict[str, Any]) -> Answer:
    """Return one frame as PNG or JPEG: windowed as asked, else as its header says, else from least to greatest."""
    one = _frame(order)
    if one.samples > 1 or one.photometric in _COLOURS:
        shades = _coloured(one)
    elif one.bits_allocated == 1:
        shades = _decoded(one) * np.uint8(255)
    else:
        shades = _windowed(one, order["window"])
    picture = Image.fromarray(shades)
    if order["viewport"]:
        width, height = order["viewport"]
        share = min(width / picture.width, height / picture.height)
        size = max(1, round(picture.width * share)), max(1, round(picture.height * share))
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    options = {"quality": order["quality"]} if order["format"] == "JPEG" else {"compress_level": 1}
    picture.save(buffer, order["format"], **options)
    return {}, buffer.getvalue()


def _windowed(one: Frame, asked: list[Any] | None) -> npt.NDArray[np.uint8]:
    header = read_header(one)
    stored = _decoded(one)
    if one.bits_allocated in (8, 16):
        stored = significant_bits(stored, one)
    values = stored.astype(np.float32)
    if one.has_lut:
        from pydicom.pixels.processing import apply_modality_lut

        values = apply_modality_lut(stored, header).astype(np.float32)
    elif one.slope is not None and one.intercept is not None:
        values = values * np.float32(one.slope) + np.float32(one.intercept)
    inverted = one.photometric == "MONOCHROME1"
    if asked:
        return apply(values, Window(asked[0], asked[1], cast("Function", asked[2]), inverted))
    offered = views_of(cast("Dataset", attributes(header, one.index)))
    if offered:
        return apply(values, offered[0])
    low, high = float(values.min()), float(values.max())
    return apply(values, Window((low + high) / 2, max(high - low, 1e-6), "LINEAR_EXACT", inverted))


def _coloured(one: Frame) -> npt.NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    values = pixel_array(one.path, index=one.index)
    if one.photometric == "PALETTE COLOR":
        values = apply_color_lut(values, read_header(one))
    if values.dtype == np.uint16:
        values = values >> 8
    shades: npt.NDArray[np.uint8] = values.astype(np.uint8)
    return shades


def _decoded(one: Frame) -> npt.NDArray[Any]:
    if one.samples == 1 and one.bits_allocated in (8, 16):
        return stored_values(one)
    from pydicom.pixels.utils import pixel_array

    values: npt.NDArray[Any] = pixel_array(one.path, index=one.index, raw=True)
    return values


def _frame(order: dict[str, Any]) -> Frame:
    found = _frames(order["path"], os.stat(order["path"]).st_mtime_ns)
    index = order["index"]
    first = found[0]
    if first.pixel_length == -1 or first.rows <= 0 or first.columns <= 0:
        raise Refused(406, "the object has no pixels")
    if not 0 <= index < first.frames:
        raise Refused(404, f"the object has {first.frames} frames")
    if max(first.rows, first.columns) > 2 * _LARGEST_SIDE or not 1 <= first.samples <= 4:
        raise Refused(406, "the pixels are larger than what is shown")
    return found[index] if index < len(found) else dataclasses.replace(first, index=index)


# All frames of a file are asked for one after the other, and its digest takes a read of all of it.
@lru_cache(maxsize=16)
def _frames(path: str, _changed: int) -> tuple[Frame, ...]:
    return read_file(Path(path))


_ORDERS: Final = {"metadata": metadata, "bulk": bulk, "frame": frame, "rendered": rendered}


def answer(line: str) -> Answer:
    """Carry out one order; whatever goes wrong hurts only this order."""
    order = json.loads(line)
    try:
        fields, content = _ORDERS[order["do"]](order)
    except Refused as refused:
        return {"refused": refused.why, "status": refused.status}, b""
    except Refusal as refusal:
        return {"refused": refusal.message, "status": 406}, b""
    except FileNotFoundError:
        return {"refused": "the file of the object is gone", "status": 404}, b""
    except Exception as error:  # noqa: BLE001 - decoders and pydicom raise whatever they like on hostile bytes
        return {"refused": f"the object cannot be shown: {type(error).__name__}", "status": 406}, b""
    return {"ok": fields}, content


def main() -> int:
    """Serve orders until standard input ends."""
    die_with_parent(int(sys.argv[1]))
    log.configure(Log(level="error"), role="render")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # Decoders print what they like; only our answers may reach the parent.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    out.write(LENGTHS.pack(0, 0))
    out.flush()
    for line in sys.stdin:
        fields, content = answer(line)
        head = json.dumps(fields).encode()
        out.write(LENGTHS.pack(len(head), len(content)))
        out.write(head)
        out.write(content)
        out.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
