"""Objects of a later revision name those of the earlier ones, and say in the series description which they are.

Nothing is ever deleted at a destination: whoever finds two reports there has to see which one is later. Images name
the series and objects before them (General Series and General Reference modules, PS3.3 C.7.3.1 and C.12.4), structured
reports their predecessor documents (PS3.3 C.17.2).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from ctnode.ops.durable import write_durable

# A SEG may only reference what its Common Instance Reference module lists: it names the series alone.
_SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
_STRUCTURED_REPORT: Final = "1.2.840.10008.5.1.4.1.1.88."
_DESCRIPTION_LIMIT: Final = 64


def name_predecessors(folder: Path, outputs: Iterable[str], revision: int) -> None:
    """Let the DICOM objects among ``outputs`` of a revision name what the earlier revisions beside it hold.

    Parameters
    ----------
    folder
        Where the outputs are, not yet published; ``r1``, ``r2`` and so on lie beside it.
    outputs
        Names of files; others than ``*.dcm`` are left alone.
    revision
        Number of the revision; the first has no predecessors.
    """
    for name in outputs:
        if revision > 1 and name.endswith(".dcm"):
            earlier = [
                found
                for n in range(revision - 1, 0, -1)
                if (found := _read(folder.parent / f"r{n}" / name)) is not None
            ]
            _rewrite(folder / name, earlier, revision)


def _read(file: Path) -> Dataset | None:
    try:
        return pydicom.dcmread(file, stop_before_pixels=True)
    except (OSError, InvalidDicomError):
        # It was not written then, or a rule of the operator has deleted it.
        return None


def _rewrite(file: Path, earlier: Sequence[Dataset], revision: int) -> None:
    dataset = pydicom.dcmread(file)
    suffix = f", revision {revision}"
    description = str(dataset.get("SeriesDescription", "") or "")
    dataset.SeriesDescription = description[: _DESCRIPTION_LIMIT - len(suffix)] + suffix
    if earlier and str(dataset.SOPClassUID).startswith(_STRUCTURED_REPORT):
        dataset.PredecessorDocumentsSequence = [_document(one) for one in earlier]
    elif earlier:
        dataset.RelatedSeriesSequence = [_series(one) for one in earlier]
        if dataset.SOPClassUID == _SECONDARY_CAPTURE:
            dataset.ReferencedImageSequence = [_instance(one) for one in earlier]
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    write_durable(file, buffer.getvalue(), mode=0o644)


def _instance(earlier: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = earlier.SOPClassUID
    item.ReferencedSOPInstanceUID = earlier.SOPInstanceUID
    return item


def _series(earlier: Dataset) -> Dataset:
    item = Dataset()
    item.StudyInstanceUID = earlier.StudyInstanceUID
    item.SeriesInstanceUID = earlier.SeriesInstanceUID
    # Type 2: no code of the standard says "an earlier revision of this".
    item.PurposeOfReferenceCodeSequence = []
    return item


def _document(earlier: Dataset) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID = earlier.SeriesInstanceUID
    series.ReferencedSOPSequence = [_instance(earlier)]
    item = Dataset()
    item.StudyInstanceUID = earlier.StudyInstanceUID
    item.ReferencedSeriesSequence = [series]
    return item
