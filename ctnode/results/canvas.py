"""Drawing for the pictures: anatomical planes in true proportions, contours, text. Pillow only, same bytes every time.

Planes are shown as radiologists expect them (PS3.3 C.7.6.1.1.1 is about storage, this is about habit): the patient's
right on the viewer's left, the front up in axial planes, the head up in coronal and sagittal ones.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from ctnode.ct.coarse import AIRWAY, LEFT, RIGHT, anatomical_axes
from ctnode.ct.grid import Volume
from ctnode.ct.window import View, apply
from ctnode.ops.durable import write_durable
from ctnode.words import LungStatus

Colour = tuple[int, int, int]
Direction = Literal["axial", "coronal", "sagittal"]
Picture = npt.NDArray[np.uint8]

# Okabe and Ito's palette, told apart with every common colour vision deficiency; the same side has the same colour
# in every picture.
COLOURS: Final[dict[int, Colour]] = {RIGHT: (230, 159, 0), LEFT: (86, 180, 233), AIRWAY: (240, 228, 66)}
NAMES: Final[dict[int, str]] = {RIGHT: "right lung", LEFT: "left lung", AIRWAY: "airway"}
PAPER: Final[Colour] = (18, 20, 24)
INK: Final[Colour] = (235, 235, 235)
BAR: Final[Colour] = (255, 255, 255)
FAINT: Final[Colour] = (150, 155, 162)
WARNING: Final[Colour] = (213, 94, 0)
GOOD: Final[Colour] = (0, 158, 115)

MARGIN: Final = 14
# Rows of pixels above the pictures of a page, and of a line of its foot.
_HEAD: Final = 48
_LINE: Final = 22

_AXES: Final[dict[Direction, int]] = {"axial": 0, "coronal": 1, "sagittal": 2}
# Left, right, top and bottom of the picture.
LETTERS: Final[dict[Direction, tuple[str, str, str, str]]] = {
    "axial": ("R", "L", "A", "P"),
    "coronal": ("R", "L", "S", "I"),
    "sagittal": ("A", "P", "S", "I"),
}
_LEAST_FOR_LETTERS: Final = 60
# Places along an axis that are looked at in search of a mask.
_SEARCHED: Final = 128


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
            first, last = self.span(axis) or (0, self.labels.shape[axis] - 1)
            margin = round(margin_mm / step)
            window.append(slice(max(0, first - margin), last + margin + 1))
        part = tuple(window)
        return Views(self.voxels[part], self.labels[part], self.spacing_mm)

    def span(self, axis: int, wanted: tuple[int, ...] = (RIGHT, LEFT, AIRWAY)) -> tuple[int, int] | None:
        """Return the first and last index along ``axis`` (S, P, L) with one of the labels, None without any.

        Along the other axes a part of the voxels is looked at, which no lung hides between.
        """
        if self.labels is None:
            return None
        thinned = tuple(
            slice(None) if other == axis else slice(None, None, max(1, size // _SEARCHED))
            for other, size in enumerate(self.labels.shape)
        )
        part = self.labels[thinned]
        others = tuple(other for other in range(3) if other != axis)
        inside = np.zeros(part.shape, dtype=np.bool_)
        for label in wanted:
            inside |= part == label
        found = np.flatnonzero(inside.any(axis=others))
        return (int(found[0]), int(found[-1])) if found.size else None

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
        plane = self.voxels[_at(direction, index)]
        shown: npt.NDArray[np.int16] | npt.NDArray[np.float32]
        shown = np.ascontiguousarray(plane if direction == "axial" else plane[::-1])  # type: ignore[assignment]
        return shown

    def mask(self, direction: Direction, index: int) -> Picture | None:
        """Return the mask of one plane, first row at the top of the picture."""
        if self.labels is None:
            return None
        plane = self.labels[_at(direction, index)]
        return np.ascontiguousarray(plane if direction == "axial" else plane[::-1])


def _at(direction: Direction, index: int) -> tuple[slice | int, ...]:
    """Return what picks one plane; NumPy's take would copy a flipped volume whole."""
    return (*(slice(None),) * _AXES[direction], index)


def tile(
    views: Views,
    direction: Direction,
    index: int,
    box: tuple[int, int],
    window: View,
    *,
    letters: bool = True,
    per_mm: float | None = None,
) -> Image.Image:
    """Return one plane as RGB in a box of ``(height, width)`` pixels, with contours where there is a mask.

    The plane is as large as fits, or has ``per_mm`` pixels in a millimetre.
    """
    height, width = views.fitted(direction, *box)
    if per_mm is not None:
        height, width = (max(1, round(length * per_mm)) for length in views.size_mm(direction))
    grey = Image.fromarray(apply(views.plane(direction, index), window))
    pixels = np.array(grey.resize((width, height), Image.Resampling.BILINEAR).convert("RGB"))
    mask = views.mask(direction, index)
    if mask is not None:
        for label, colour in COLOURS.items():
            _draw_outline(pixels, mask == label, colour)
    picture = Image.new("RGB", (box[1], box[0]), (0, 0, 0))
    x, y = (box[1] - width) // 2, (box[0] - height) // 2
    picture.paste(Image.fromarray(pixels), (x, y))
    if letters:
        draw = ImageDraw.Draw(picture)
        left, right, top, bottom = LETTERS[direction]
        # Low pictures have no room for letters above and below that would not cover them.
        note(draw, (max(4, x + 4), box[0] // 2), left, anchor="lm")
        note(draw, (min(box[1] - 4, x + width - 4), box[0] // 2), right, anchor="rm")
        if height >= _LEAST_FOR_LETTERS:
            note(draw, (box[1] // 2, max(4, y + 4)), top, anchor="ma")
            note(draw, (box[1] // 2, min(box[0] - 4, y + height - 4)), bottom, anchor="md")
    return picture


def _draw_outline(pixels: Picture, mask: npt.NDArray[np.bool_], colour: Colour) -> None:
    """Draw a smooth line of about two pixels along the border of ``mask``, which is scaled to the picture."""
    if not mask.any():
        return
    height, width = pixels.shape[:2]
    scaled = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
    # A frame of outside closes the line where the mask touches the edge of the picture.
    share = np.pad(np.asarray(scaled, dtype=np.float32), 1) - np.float32(127.5)
    near = np.zeros(share.shape, dtype=np.bool_)
    for axis in (0, 1):
        steep = np.abs(np.diff(np.signbit(share), axis=axis))
        near |= np.pad(steep, [(0, 1) if other == axis else (0, 0) for other in (0, 1)])
        near |= np.pad(steep, [(1, 0) if other == axis else (0, 0) for other in (0, 1)])
    near = ndimage.binary_dilation(near, iterations=1)
    slope = np.hypot(*np.gradient(share))
    strength = np.clip(np.float32(1.5) - np.abs(share) / np.maximum(slope, np.float32(1.0)), 0.0, 1.0)
    strength = np.where(near, strength, np.float32(0.0))[1:-1, 1:-1, None]
    blended = pixels + strength * (np.array(colour, dtype=np.float32) - pixels)
    pixels[:] = np.rint(blended).astype(np.uint8)


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


def bar_length_mm(pixels_per_mm: float, width: int) -> int:
    """Return the longest round length, 50 mm at most, that is no wider than half of ``width`` pixels."""
    return next((length for length in (50, 20, 10, 5, 2) if length * pixels_per_mm <= width / 2), 1)


def scale_bar(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], pixels_per_mm: float, *, width: int = 1 << 16
) -> None:
    """Draw a bar with its length in words into a picture of ``width`` pixels; ``corner`` is its left end."""
    x, y = corner
    length_mm = bar_length_mm(pixels_per_mm, width)
    end = x + max(1, round(length_mm * pixels_per_mm)) - 1
    draw.rectangle((x - 1, y - 2, end + 1, y + 1), fill=(0, 0, 0))
    draw.rectangle((x, y - 1, end, y), fill=BAR)
    words = f"{length_mm // 10} cm" if length_mm % 10 == 0 else f"{length_mm} mm"
    note(draw, (max(x + round(font(12).getlength(words)) // 2, (x + end) // 2), y - 6), words, anchor="mb")


def spread(first: int, last: int, count: int) -> list[int]:
    """Return up to ``count`` different indices from ``first`` to ``last``, evenly spread, both ends included."""
    return sorted({int(index) for index in np.rint(np.linspace(first, last, max(1, min(count, last - first + 1))))})


def foot(status: LungStatus, reasons: Sequence[str], width: int) -> tuple[tuple[str, Colour], ...]:
    """Return the lines under pictures of a mask: none where it is OK, else the status and every reason."""
    if status is LungStatus.OK:
        return ()
    lines = [(line, INK) for reason in reasons for line in wrapped(reason, 15, width)]
    return ((str(status).replace("_", " "), WARNING), *lines)


def head(
    title: str,
    width: int,
    height: int,
    below: Sequence[tuple[str, Colour]] = (),
    *,
    colours: Mapping[int, Colour] | None = None,
    names: Mapping[int, str] | None = None,
    note: str = "",
) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """Return a page with title, legend, a faint note to the right and the lines of its foot, and where pictures begin.

    Parameters
    ----------
    title
        What the page shows.
    width, height
        Of the space for pictures in pixels; it begins at ``MARGIN`` from the left.
    below
        Lines of ``foot``.
    colours, names
        For the legend; ``names`` are added to those of the mask.
    note
        What the pictures depend on.
    """
    end = _HEAD + height + (8 + _LINE * len(below) if below else 0)
    page = Image.new("RGB", (width + 2 * MARGIN, end + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, _HEAD // 2), title, font=font(20), fill=INK, anchor="lm")
    x = MARGIN + round(font(20).getlength(title)) + 28
    for label, colour in (colours or {}).items():
        name = {**NAMES, **(names or {})}[label]
        draw.rectangle((x, _HEAD // 2 - 5, x + 14, _HEAD // 2 + 5), fill=colour)
        draw.text((x + 21, _HEAD // 2), name, font=font(15), fill=INK, anchor="lm")
        x += 21 + 18 + round(font(15).getlength(name))
    draw.text((width + MARGIN, _HEAD // 2), note, font=font(14), fill=FAINT, anchor="rm")
    for number, (line, colour) in enumerate(below):
        draw.text((MARGIN, _HEAD + height + 14 + _LINE * number), line, font=font(15), fill=colour)
    return page, draw, _HEAD


def save(page: Image.Image, path: Path) -> None:
    """Write ``page`` as PNG without any text chunk, fsynced; the same page gives the same bytes."""
    content = io.BytesIO()
    page.save(content, format="PNG", compress_level=4)
    write_durable(path, content.getvalue(), mode=0o644)
