"""High-Throughput JPEG 2000 written with OpenJPH: ctnode and pydicom only read it."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, HTJ2KLossless


def compress(dataset: Dataset, syntax: str = HTJ2KLossless) -> None:
    """Compress the native little endian pixels of ``dataset`` without loss, frame by frame."""
    imagecodecs = pytest.importorskip("imagecodecs", reason="needs the extra 'test'")
    kind = f"{'i' if dataset.PixelRepresentation else 'u'}{dataset.BitsAllocated // 8}"
    frames = int(dataset.get("NumberOfFrames") or 1)
    pixels = np.frombuffer(dataset.PixelData, f"<{kind}").reshape(frames, dataset.Rows, dataset.Columns)
    dataset.PixelData = encapsulate([imagecodecs.htj2k_encode(frame) for frame in pixels])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
