"""``surface.png``: lungs and airway in three dimensions, in the context of bone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from ctnode.ct.coarse import AIRWAY
from ctnode.ct.grid import Volume
from ctnode.ct.lungs import Lungs
from ctnode.ct.volume import HU
from ctnode.results.canvas import COLOURS, INK, MARGIN, Colour, font, foot, head, note, save, scale_bar
from ctnode.results.case import Case, Stage
from ctnode.results.mesh import BONE, meshes
from ctnode.results.raster import Floats, Layer, Mesh, render, view_axes

AFTER: Final = Stage.LUNGS

# Name, where the viewer stands, and what is to the left and to the right of the picture.
_VIEWS: Final = (
    ("anterior", 0.0, "R", "L"),
    ("right lateral", -90.0, "P", "A"),
    ("posterior", 180.0, "L", "R"),
    ("left lateral", 90.0, "A", "P"),
)
_WIDTH: Final = 1500
_HEIGHT: Final = 430
_GAP: Final = 14
_MARGIN_MM: Final = 6.0
_SUPERSAMPLED: Final = 1.5
_BONE_COLOUR: Final[Colour] = (226, 219, 202)
_PANEL: Final[Colour] = (8, 9, 11)


def available(case: Case) -> bool:
    """Return whether lungs were found."""
    return case.mask is not None and case.volume.unit == HU


def write(case: Case) -> tuple[Path, ...]:
    """Write ``surface.png``."""
    assert case.mask is not None
    path = case.path("surface.png")
    save(draw(case.volume, case.mask), path)
    return (path,)


def draw(volume: Volume, lungs: Lungs) -> Image.Image:
    """Return the page: the same scale in each view, status and reasons when not OK."""
    found = meshes(volume, lungs.labels)
    low, high = _extent(found)
    wide = [float(np.abs(view_axes(azimuth)[0]) @ (high - low)) for _, azimuth, _, _ in _VIEWS]
    tall = float(high[2] - low[2])
    per_mm = min((_WIDTH - _GAP * (len(_VIEWS) - 1)) / sum(wide), _HEIGHT / tall)
    height = max(90, round(tall * per_mm))
    widths = [max(60, round(across * per_mm)) for across in wide]
    below = foot(lungs.status, lungs.reasons, _WIDTH)
    page, paint, y = head(
        "Lung surfaces", _WIDTH, height + 30, below, colours={**COLOURS, BONE: _BONE_COLOUR}, names={BONE: "bone"},
        note=f"{volume.grid.shape[0]} slices, marching cubes on a reduced grid",
    )  # fmt: skip
    center = (low + high) / 2

    def panel(number: int) -> Image.Image:
        return _view(found, _VIEWS[number][1], center, per_mm, (height, widths[number]))

    with ThreadPoolExecutor(2) as pool:
        pictures = list(pool.map(panel, range(len(_VIEWS))))
    x = MARGIN + (_WIDTH - sum(widths) - _GAP * (len(widths) - 1)) // 2
    for (name, _, left, right), picture in zip(_VIEWS, pictures, strict=True):
        page.paste(picture, (x, y))
        middle = y + height // 2
        note(paint, (x + 6, middle), left, anchor="lm")
        note(paint, (x + picture.width - 6, middle), right, anchor="rm")
        note(paint, (x + picture.width // 2, y + 4), "S", anchor="ma")
        note(paint, (x + picture.width // 2, y + height - 4), "I", anchor="md")
        paint.text((x + picture.width // 2, y + height + 6), name, font=font(15), fill=INK, anchor="ma")
        if name == "anterior":
            scale_bar(paint, (x + 10, y + height - 10), per_mm)
        x += picture.width + _GAP
    return page


def _extent(found: dict[int, Mesh]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the lowest and highest L, P, S in millimetres of all meshes, with a margin.

    A mask of a few voxels has no surface on the reduced grid; its panels are empty.
    """
    if not found:
        return np.full(3, -_MARGIN_MM), np.full(3, _MARGIN_MM)
    points = np.concatenate([np.stack([mesh.points.min(axis=0), mesh.points.max(axis=0)]) for mesh in found.values()])
    return points.min(axis=0).astype(np.float64) - _MARGIN_MM, points.max(axis=0).astype(np.float64) + _MARGIN_MM


def _view(
    found: dict[int, Mesh], azimuth: float, center: npt.NDArray[np.float64], per_mm: float, size: tuple[int, int]
) -> Image.Image:
    """Return one panel of ``(height, width)`` pixels."""
    if not found:
        return Image.new("RGB", (size[1], size[0]), _PANEL)
    axes = view_axes(azimuth)
    fine = (round(size[0] * _SUPERSAMPLED), round(size[1] * _SUPERSAMPLED))
    scale = per_mm * _SUPERSAMPLED
    middle = axes[:2] @ center
    corner = (float(middle[0]) - fine[1] / scale / 2, float(middle[1]) - fine[0] / scale / 2)
    layers = {label: render(mesh, axes, corner, scale, fine) for label, mesh in found.items()}
    pixels = _composed(layers, fine)
    return Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.HAMMING)


def _opacity(label: int, layer: Layer) -> Floats:
    """Return how much of what lies behind is hidden: glass for bone, with its outline kept; the airway is solid."""
    if label == AIRWAY:
        hidden = np.ones_like(layer.facing)
    elif label == BONE:
        hidden = 0.28 + 0.47 * (1.0 - layer.facing)
    else:
        hidden = 0.82 + 0.18 * (1.0 - layer.facing)
    opacity: Floats = np.where(np.isfinite(layer.depth_mm), hidden, 0.0).astype(np.float32)
    return opacity


def _composed(layers: dict[int, Layer], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return RGB of the layers, the nearer over the farther in every pixel."""
    order = np.argsort(np.stack([layer.depth_mm for layer in layers.values()]), axis=0, kind="stable")
    hidden = np.stack([_opacity(label, layer) for label, layer in layers.items()])
    light = np.stack([layer.light for layer in layers.values()])
    palette = np.array([{**COLOURS, BONE: _BONE_COLOUR}[label] for label in layers], dtype=np.float32)
    shown = np.zeros((*size, 3), dtype=np.float32)
    left = np.ones(size, dtype=np.float32)
    for rank in order:
        part = np.take_along_axis(hidden, rank[None], axis=0)[0] * left
        shown += (part * np.take_along_axis(light, rank[None], axis=0)[0])[..., None] * palette[rank]
        left -= part
    shown += left[..., None] * np.array(_PANEL, dtype=np.float32)
    return np.clip(np.rint(shown), 0, 255).astype(np.uint8)
