"""What people open: NIfTI, PNG, JSON and DICOM."""
