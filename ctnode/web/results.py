"""The published results of a revision as the page shows and hands them out; files are named by their folder only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ctnode.archive import catalog
from ctnode.archive.layout import Layout
from ctnode.words import NotFound

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]*(\.[A-Za-z0-9]+)+")
_READ_LIMIT_BYTES: Final = 4 << 20
# In the order in which they are looked at, each with what it shows.
PICTURES: Final[Mapping[str, str]] = {
    "preview": "slices", "lungs": "lungs", "mpr": "three planes", "surface": "surface", "histogram": "histogram",
}  # fmt: skip
MEDIA: Final[Mapping[str, str]] = {
    ".png": "image/png", ".json": "application/json", ".gz": "application/gzip", ".dcm": "application/dicom",
    ".zip": "application/zip",
}  # fmt: skip
OTHER: Final = "application/octet-stream"
# Columns of the measurements that are shown, with their headings and units.
SHOWN: Final = (
    ("volume_ml", "Volume", "ml"),
    ("mean_hu", "Mean", "HU"),
    ("median_hu", "Median", "HU"),
    ("perc15_hu", "Perc15", "HU"),
    ("laa950_pct", "LAA−950", "%"),
)


@dataclass(frozen=True, slots=True)
class Result:
    """One file of a results folder."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a results folder."""

    name: str
    caption: str


@dataclass(frozen=True, slots=True)
class Measured:
    """The numbers of one volume: its lung status, and a row for each side."""

    name: str
    status: str
    reasons: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def folder_of(layout: Layout, series: catalog.Series, revision: int) -> Path:
    """Return the results folder of a revision."""
    return layout.result_directory(series.study, series.uid, series.split, revision)


def listed(folder: Path) -> tuple[Result, ...]:
    """Return the files of a folder, none where there is no folder."""
    try:
        found = [Result(file.name, file.stat().st_size) for file in folder.iterdir() if _NAME.fullmatch(file.name)]
    except OSError:
        return ()
    return tuple(sorted(found, key=lambda one: one.name))


def file_of(folder: Path, name: str) -> Path:
    """Return a file of a folder.

    Raises
    ------
    NotFound
        If the folder holds none of this name.
    """
    if _NAME.fullmatch(name) and name in {one.name for one in listed(folder)}:
        return folder / name
    raise NotFound("no such result", hint="a newer revision may have taken its place")


def pictures(files: tuple[Result, ...]) -> tuple[Picture, ...]:
    """Return the pictures among the files, the most telling first."""
    names = [one.name for one in files if one.name.endswith(".png")]
    order = list(PICTURES)

    def rank(name: str) -> tuple[int, str]:
        stem = _stem(name)
        return (order.index(stem) if stem in order else len(order), name)

    return tuple(Picture(name, PICTURES.get(_stem(name), _stem(name))) for name in sorted(names, key=rank))


def _stem(name: str) -> str:
    return re.sub(r"_[0-9]+$", "", name.partition(".")[0])


def measured(folder: Path, files: tuple[Result, ...]) -> tuple[Measured, ...]:
    """Return the numbers of each volume, as ``measurements.json`` has them."""
    return tuple(
        _measured(one.name, content)
        for one in files
        if _stem(one.name) == "measurements" and (content := _read(folder / one.name))
    )


def _measured(name: str, content: Mapping[str, Any]) -> Measured:
    rows = []
    for side in ("right", "left", "both"):
        numbers = content.get(side)
        if isinstance(numbers, Mapping):
            rows.append((side, tuple(_number(numbers.get(key)) for key, _, _ in SHOWN)))
    reasons = content.get("reasons", ())
    return Measured(name, str(content.get("status", "")), tuple(map(str, reasons)), tuple(rows))


def _number(value: object) -> str:
    if not isinstance(value, int | float):
        return "–"
    return f"{value:,.1f}".replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")


def descriptions(folder: Path) -> Mapping[str, str]:
    """Return the descriptions of study, series and protocol, where ``outputs.descriptions`` wrote them down."""
    content = _read(folder / "ct.json")
    return {
        label: str(content[key])
        for key, label in (
            ("StudyDescription", "study"), ("SeriesDescription", "series"), ("ProtocolName", "protocol"),
        )
        if isinstance(content.get(key), str)
    }  # fmt: skip


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _READ_LIMIT_BYTES:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
