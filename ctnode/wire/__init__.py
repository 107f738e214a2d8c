"""DICOM on the network: who may talk, how bytes arrive, how results leave."""
