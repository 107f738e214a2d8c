"""Drawing for the pictures: anatomical planes in true proportions, contours, text. Pillow only, same bytes every time.

Planes are shown as radiologists expect them (PS3.3 C.7.6.1.1.1 is about storage, this is about habit): the patient's
right on the viewer's left, the front up in axial planes, the head up in coronal and sagittal ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from ctnode.ct.coarse import AIRWAY, LEFT, RIGHT, anatomical_axes
from ctnode.ct.grid import Volume
from ctnode.ct.window import View, apply

Colour = tuple[int, int, int]
Direction = Literal["axial", "coronal", "sagittal"]
Picture = npt.NDArray[np.uint8]

# Okabe and Ito's palette, told apart with every common colour vision deficiency; the same side has the same colour
# in every picture.
COLOURS: Final[dict[int, Colour]] = {RIGHT: (230, 159, 0), LEFT: (86, 180, 233), AIRWAY: (240, 228, 66)}
NAMES: Final[dict[int, str]] = {RIGHT: "right lung", LEFT: "left lung", AIRWAY: "airway"}
PAPER: Final[Colour] = (18, 20, 24)
INK: Final[Colour] = (235, 235, 235)
FAINT: Final[Colour] = (150, 155, 162)
WARNING: Final[Colour] = (213, 94, 0)
GOOD: Final[Colour] = (0, 158, 115)

_AXES: Final[dict[Direction, int]] = {"axial": 0, "coronal": 1, "sagittal": 2}
_LETTERS: Final[dict[Direction, tuple[str, str]]] = {"axial": ("R", "L"), "coronal": ("R", "L"), "sagittal": ("A", "P")}


@dataclass(frozen=True, eq=False, slots=True)
class Views:
    """A volume (and its mask) seen along anatomical axes; nothing is copied.

    Parameters
    ----------
    voxels
        ``(s, p, l)`` view of the native array in HU.
    labels
        ``(s, p, l)`` view of the mask, or None.
    spacing_mm
        Along ``(s, p, l)``.
    """

    voxels: npt.NDArray[np.int16] | npt.NDArray[np.float32]
    labels: Picture | None
    spacing_mm: tuple[float, float, float]

    @classmethod
    def of(cls, volume: Volume, labels: Picture | None = None) -> Views:
        """Return the views of ``volume`` and its native mask."""
        order, flipped = anatomical_axes(volume.grid)
        flips = tuple(slice(None, None, -1 if flip else 1) for flip in flipped)
        native = volume.grid.spacing_mm
        return cls(
            voxels=volume.voxels.transpose(order)[flips],
            labels=None if labels is None else labels.transpose(order)[flips],
            spacing_mm=(native[order[0]], native[order[1]], native[order[2]]),
        )

    def around_lungs(self, *, margin_mm: float = 25.0) -> Views:
        """Return the views cropped to both lungs and ``margin_mm`` round them; all of it without a mask."""
        if self.labels is None or not self.labels.any():
            return self
        window = []
        for axis, step in enumerate(self.spacing_mm):
            found = np.flatnonzero(self.labels.any(axis=tuple(other for other in range(3) if other != axis)))
            margin = round(margin_mm / step)
            window.append(slice(max(0, int(found[0]) - margin), int(found[-1]) + margin + 1))
        part = tuple(window)
        return Views(self.voxels[part], self.labels[part], self.spacing_mm)

    def count(self, direction: Direction) -> int:
        """Return how many planes there are along ``direction``."""
        return int(self.voxels.shape[_AXES[direction]])

    def size_mm(self, direction: Direction) -> tuple[float, float]:
        """Return height and width of a plane in millimetres."""
        axes = [axis for axis in range(3) if axis != _AXES[direction]]
        height, width = (self.voxels.shape[axis] * self.spacing_mm[axis] for axis in axes)
        return height, width

    def fitted(self, direction: Direction, height: int, width: int) -> tuple[int, int]:
        """Return the largest picture ``(height, width)`` in true proportions that fits into a box of pixels."""
        tall, wide = self.size_mm(direction)
        scale = min(height / tall, width / wide)
        return max(1, round(tall * scale)), max(1, round(wide * scale))

    def plane(self, direction: Direction, index: int) -> npt.NDArray[np.int16] | npt.NDArray[np.float32]:
        """Return the HU of one plane, first row at the top of the picture."""
        plane = np.take(self.voxels, index, axis=_AXES[direction])
        return np.ascontiguousarray(plane if direction == "axial" else plane[::-1])

    def mask(self, direction: Direction, index: int) -> Picture | None:
        """Return the mask of one plane, first row at the top of the picture."""
        if self.labels is None:
            return None
        plane = np.take(self.labels, index, axis=_AXES[direction])
        return np.ascontiguousarray(plane if direction == "axial" else plane[::-1])


def tile(
    views: Views, direction: Direction, index: int, box: tuple[int, int], window: View, *, letters: bool = True
) -> Image.Image:
    """Return one plane as RGB in a box of ``(height, width)`` pixels, with contours where there is a mask."""
    height, width = views.fitted(direction, *box)
    grey = Image.fromarray(apply(views.plane(direction, index), window))
    pixels = np.array(grey.resize((width, height), Image.Resampling.BILINEAR).convert("RGB"))
    mask = views.mask(direction, index)
    if mask is not None:
        for label, colour in COLOURS.items():
            pixels[_outline(mask == label, height, width)] = colour
    picture = Image.new("RGB", (box[1], box[0]), (0, 0, 0))
    corner = ((box[1] - width) // 2, (box[0] - height) // 2)
    picture.paste(Image.fromarray(pixels), corner)
    if letters:
        draw = ImageDraw.Draw(picture)
        left, right = _LETTERS[direction]
        note(draw, (4, box[0] // 2), left, anchor="lm")
        note(draw, (box[1] - 4, box[0] // 2), right, anchor="rm")
    return picture


def _outline(mask: npt.NDArray[np.bool_], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Return the inner border of ``mask`` after it was scaled to a picture of ``(height, width)``."""
    if not mask.any():
        return np.zeros((height, width), dtype=np.bool_)
    scaled = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
    shape = np.array(scaled) > 127
    border: npt.NDArray[np.bool_] = shape & ~ndimage.binary_erosion(shape)
    return border


@lru_cache(maxsize=16)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font that Pillow brings along, so that no picture depends on what is installed."""
    return ImageFont.load_default(size)


def note(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, *, anchor: str = "la") -> None:
    """Draw small text that stays readable on bright and dark pictures."""
    draw.text(corner, text, font=font(12), fill=INK, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))


def wrapped(text: str, size: int, width: int) -> list[str]:
    """Return ``text`` broken into lines of at most ``width`` pixels."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font(size).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def legend(draw: ImageDraw.ImageDraw, corner: tuple[int, int], *, size: int = 15) -> None:
    """Draw what each colour means, side by side from ``corner``."""
    x, y = corner
    for label, name in NAMES.items():
        draw.rectangle((x, y + size // 4, x + size, y + size // 4 + size // 2), fill=COLOURS[label])
        draw.text((x + size + 6, y), name, font=font(size), fill=INK)
        x += size + 24 + int(font(size).getlength(name))


def scale_bar(draw: ImageDraw.ImageDraw, corner: tuple[int, int], pixels_per_mm: float, *, length_mm: int = 50) -> None:
    """Draw a bar of ``length_mm`` with its length in words; ``corner`` is its left end."""
    x, y = corner
    end = x + round(length_mm * pixels_per_mm)
    draw.rectangle((x - 1, y - 2, end + 1, y + 2), fill=(0, 0, 0))
    draw.line((x, y, end, y), fill=INK, width=2)
    note(draw, ((x + end) // 2, y - 6), f"{length_mm // 10} cm", anchor="mb")


def spread(first: int, last: int, count: int) -> list[int]:
    """Return up to ``count`` different indices from ``first`` to ``last``, evenly spread, both ends included."""
    return sorted({int(index) for index in np.rint(np.linspace(first, last, max(1, min(count, last - first + 1))))})
