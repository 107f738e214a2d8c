"""The report for PACS viewers: one RGB page as Secondary Capture Image Storage (PS3.3 A.8.1).

Everything in the object follows from the source and the revision: UIDs are UUIDv5, dates come from ``made_at``. A
re-run writes the same bytes, and a receiver that already has the object sees a duplicate, not a second report. The
Secondary Capture IOD has no Frame of Reference module, so none is written.
"""

from __future__ import annotations

import io
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
import pydicom
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset

from ctnode import __version__
from ctnode.ct.grid import Volume
from ctnode.ct.lungs import WITHOUT_MASK, Lungs
from ctnode.ct.measure import LungNumbers, Measurements
from ctnode.ct.window import LUNG
from ctnode.ops.durable import write_durable
from ctnode.results.canvas import (
    FAINT,
    GOOD,
    INK,
    PAPER,
    WARNING,
    Views,
    font,
    legend,
    spread,
    tile,
    wrapped,
)
from ctnode.results.objects import compression, derived_uid, equipment, file_meta, local, patient_and_study
from ctnode.results.png import chosen_window, lung_planes
from ctnode.words import LungStatus

SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
SERIES_NUMBER: Final = 901
DISCLAIMER: Final = "Research use only - not for diagnosis"
# The page: 3 bytes a pixel stay under 2 MB, which every viewer and slow line takes.
_PAGE: Final = (936, 700)

_ROWS: Final = (
    ("Volume", "ml", "volume_ml", 0),
    ("Mean", "HU", "mean_hu", 0),
    ("Median", "HU", "median_hu", 0),
    ("Standard deviation", "HU", "sd_hu", 0),
    ("15th percentile", "HU", "perc15_hu", 0),
    ("LAA-950", "%", "laa950_pct", 1),
    ("HAA -600 to -250", "%", "haa_pct", 1),
    ("Mass", "g", "mass_g", 0),
)


def write_report(
    path: Path,
    volume: Volume,
    lungs: Lungs,
    measurements: Measurements,
    *,
    study: str,
    series: str,
    revision: int,
    made_at: datetime,
    settings_digest: str,
) -> None:
    """Write the report of one volume to ``path``, fsynced.

    Parameters
    ----------
    path
        ``*.dcm``.
    volume, lungs, measurements
        What is reported; with NO_LUNGS the page shows the volume and says so.
    study, series, revision
        What the UIDs derive from; ``study``, if it is a valid UID, is also the Study Instance UID where the source's
        header has none.
    made_at
        Date and time of the series and its content; in UTC if it says so.
    settings_digest
        Digest of the settings: other settings make another report.
    """
    page = draw_page(volume, lungs, measurements, revision=revision)
    identity = "|".join((study, series, str(revision), volume.input_digest, __version__, settings_digest))
    dataset = patient_and_study(volume.header, study)
    _describe(dataset, identity, made_at, found=lungs.status not in WITHOUT_MASK)
    compression(dataset, volume)
    pixels = np.asarray(page, dtype=np.uint8)
    dataset.SamplesPerPixel = 3
    dataset.PhotometricInterpretation = "RGB"
    dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    content = pixels.tobytes()
    dataset.add_new("PixelData", "OB", content + b"\x00" * (len(content) % 2))
    dataset.file_meta = file_meta(dataset)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    write_durable(path, buffer.getvalue(), mode=0o644)


def _describe(dataset: Dataset, identity: str, made_at: datetime, *, found: bool) -> None:
    """Add the modules of series, equipment, image and SOP common."""
    dataset.SOPClassUID = SECONDARY_CAPTURE
    dataset.SOPInstanceUID = derived_uid("report", "instance", identity)
    dataset.SeriesInstanceUID = derived_uid("report", "series", identity)
    dataset.Modality = "OT"
    if found:
        dataset.BodyPartExamined = "CHEST"
    else:
        # Type 2C without a body part: it is unknown whether what the page shows is paired.
        dataset.Laterality = None
    dataset.SeriesNumber = SERIES_NUMBER
    dataset.SeriesDescription = "ctnode lung report"
    dataset.InstanceNumber = 1
    dataset.ConversionType = "WSD"
    equipment(dataset, made_at)
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.DerivationDescription = "Lung segmentation and densitometry"
    dataset.BurnedInAnnotation = "NO"
    dataset.PatientOrientation = None
    moment = local(dataset, made_at)
    date, time = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S.%f")
    dataset.SeriesDate = dataset.ContentDate = dataset.InstanceCreationDate = date
    dataset.SeriesTime = dataset.ContentTime = dataset.InstanceCreationTime = time


def draw_page(volume: Volume, lungs: Lungs, measurements: Measurements, *, revision: int) -> Image.Image:
    """Return the page as RGB: pictures to the left, numbers and status to the right; no text about a patient."""
    page = Image.new("RGB", _PAGE, PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((16, 12), "Lung report", font=font(24), fill=INK)
    if lungs.status not in WITHOUT_MASK:
        legend(draw, (180, 20), size=14)
        views = Views.of(volume, lungs.labels).around_lungs()
        axial, upright = lung_planes(views)
        chosen, window = [axial[2], axial[1], upright[1]], LUNG
    else:
        views = Views.of(volume)
        chosen = [("axial", index) for index in spread(0, views.count("axial") - 1, 6)[1:5:2]]
        chosen.append(("coronal", views.count("coronal") // 2))
        window = chosen_window(volume)[1]
    places = [(16, 52, 238, 220), (258, 52, 238, 220), (16, 276, 480, 372)]
    for (direction, index), (x, y, width, height) in zip(chosen, places[-len(chosen) :], strict=True):
        page.paste(tile(views, direction, index, (height, width), window), (x, y))
    _write_status(draw, lungs, y=52)
    if measurements.both is not None:
        _write_table(draw, volume, measurements, y=286)
    shape = " x ".join(str(size) for size in volume.grid.shape[::-1])
    spacing = " x ".join(f"{step:.2f}" for step in volume.grid.spacing_mm[::-1])
    technique = f"{shape} voxels of {spacing} mm"
    draw.text((16, 662), DISCLAIMER, font=font(18), fill=WARNING)
    draw.text((920, 654), f"volume {volume.status}, {technique}", font=font(12), fill=FAINT, anchor="ra")
    draw.text((920, 672), f"ctnode {__version__}, revision {revision}", font=font(12), fill=FAINT, anchor="ra")
    return page


def _write_status(draw: ImageDraw.ImageDraw, lungs: Lungs, *, y: int) -> None:
    """Draw the status and as many reasons as there is room for; never fewer without saying so."""
    colour = GOOD if lungs.status is LungStatus.OK else WARNING
    draw.rectangle((512, y, 516, y + 26), fill=colour)
    draw.text((526, y), str(lungs.status).replace("_", " "), font=font(22), fill=INK)
    lines = [line for reason in lungs.reasons for line in wrapped(f"- {reason}", 14, 390)]
    room = 9
    if len(lines) > room:
        lines = [*lines[: room - 1], "... and more: see measurements.json"]
    if not lines:
        lines = ["No check found anything unusual."]
    for number, line in enumerate(lines):
        draw.text((526, y + 36 + 20 * number), line, font=font(14), fill=INK)


def _write_table(draw: ImageDraw.ImageDraw, volume: Volume, measurements: Measurements, *, y: int) -> None:
    """Draw the numbers of right, left and both lungs, and what they depend on."""
    columns = {"right": 742, "left": 830, "both": 918}
    if measurements.status is not LungStatus.OK:
        draw.text((512, y), str(measurements.status), font=font(15), fill=WARNING)
    for name, x in columns.items():
        draw.text((x, y), name, font=font(15), fill=FAINT, anchor="ra")
    draw.line((512, y + 22, 920, y + 22), fill=FAINT)
    for row, (title, unit, field, digits) in enumerate(_ROWS):
        line = y + 30 + 27 * row
        draw.text((512, line), title, font=font(15), fill=INK)
        draw.text((512 + font(15).getlength(title) + 6, line + 2), unit, font=font(12), fill=FAINT)
        for name, x in columns.items():
            numbers: LungNumbers | None = getattr(measurements, name)
            text = "-" if numbers is None else f"{getattr(numbers, field):.{digits}f}"
            draw.text((x, line), text, font=font(15), fill=INK, anchor="ra")
    kernel = str(volume.technique.get("ConvolutionKernel", "")).strip("[]' ")
    depends = (
        f"Vessels are included, trachea and main bronchi are not. Density depends on slice distance "
        f"({max(volume.grid.spacing_mm):.2f} mm), kernel{f' ({kernel})' if kernel else ''} and breath-hold."
    )
    lines = [(text, FAINT) for text in wrapped(depends, 12, 404)]
    lines += [(text, WARNING) for warning in measurements.warnings for text in wrapped(warning, 12, 404)]
    for number, (text, colour) in enumerate(lines):
        draw.text((512, y + 38 + 27 * len(_ROWS) + 17 * number), text, font=font(12), fill=colour)
