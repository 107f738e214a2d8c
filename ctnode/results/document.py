"""The page of ``report.dcm`` as Encapsulated PDF (PS3.3 A.45.1), for archives that file documents and no captures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import pydicom
from pydicom.dataset import Dataset

from ctnode import __version__
from ctnode.ct.grid import Volume
from ctnode.ct.lungs import Lungs
from ctnode.ct.measure import Measurements
from ctnode.ops.durable import write_durable
from ctnode.results.objects import Origin, describe, file_meta, local, patient_and_study, referenced
from ctnode.results.report import draw_page

ENCAPSULATED_PDF: Final = "1.2.840.10008.5.1.4.1.1.104.1"
SERIES_NUMBER: Final = 905
TITLE: Final = "Lung report"
_DOTS_PER_INCH: Final = 100.0


def write_document(path: Path, volume: Volume, lungs: Lungs, measurements: Measurements, origin: Origin) -> None:
    """Write the page to ``path``, fsynced; like the page, the PDF holds no text about a patient."""
    dataset = patient_and_study(volume.header, origin.study)
    describe(dataset, origin, volume, "document", ENCAPSULATED_PDF, "DOC")
    dataset.SeriesNumber = SERIES_NUMBER
    dataset.SeriesDescription = "ctnode lung report"
    dataset.ConversionType = "WSD"
    dataset.AcquisitionDateTime = None
    dataset.BurnedInAnnotation = "NO"
    dataset.DocumentTitle = TITLE
    dataset.ConceptNameCodeSequence = []
    named = {image.sop_uid: image.sop_class for image in volume.sources if image.sop_uid and image.sop_class}
    if named:
        dataset.SourceInstanceSequence = [referenced(sop_class, uid) for uid, sop_class in named.items()]
    content = _pdf(volume, lungs, measurements, origin, dataset)
    dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
    dataset.EncapsulatedDocumentLength = len(content)
    dataset.add_new("EncapsulatedDocument", "OB", content + b"\0" * (len(content) % 2))
    dataset.file_meta = file_meta(dataset)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    write_durable(path, buffer.getvalue(), mode=0o644)


def _pdf(volume: Volume, lungs: Lungs, measurements: Measurements, origin: Origin, dataset: Dataset) -> bytes:
    """Return the page as PDF; its dates are those of the object, for it would have the present ones."""
    page = draw_page(volume, lungs, measurements, revision=origin.revision)
    made = local(dataset, origin.made_at).timetuple()
    content = io.BytesIO()
    page.save(
        content, format="PDF", resolution=_DOTS_PER_INCH, quality=95, title=TITLE, producer=f"ctnode {__version__}",
        creationDate=made, modDate=made,
    )  # fmt: skip
    return content.getvalue()
