"""ctnode: a DICOM network node for CT."""

__version__ = "0.1.0"
