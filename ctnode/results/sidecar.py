"""JSON files beside the images: the same mapping gives the same bytes, and no value that JSON does not know."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ctnode.ops.durable import write_durable


def write_json(path: Path, mapping: Mapping[str, object]) -> None:
    """Write ``mapping`` to ``path`` as UTF-8 JSON in the order of its keys, fsynced.

    NumPy scalars and arrays become numbers and lists. A number that is not finite becomes null: NaN is no JSON, and
    readers other than Python's refuse the whole file for one.

    Raises
    ------
    TypeError
        If a value is of a kind that has no JSON form.
    """
    text = json.dumps(_plain(mapping), indent=2, ensure_ascii=False, allow_nan=False)
    write_durable(path, text.encode("utf-8") + b"\n", mode=0o644)


def _plain(value: object) -> object:
    """Return ``value`` made of the types of JSON alone."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")
