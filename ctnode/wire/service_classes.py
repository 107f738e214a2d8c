"""The SOP classes of the services of a peer that are no storage; known without any DICOM library."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

PROCEDURE_STEP: Final = "1.2.840.10008.3.1.2.3.3"
COMMITMENT: Final = "1.2.840.10008.1.20.1"
# The one instance of the class that all know (PS3.4 J.3.5).
COMMITMENT_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
AVAILABILITY: Final = "1.2.840.10008.5.1.4.33"
# The SOP classes of the services of a peer that are no storage.
SERVICES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "1.2.840.10008.1.1": "echo",
        PROCEDURE_STEP: "mpps",
        COMMITMENT: "commitment",
        AVAILABILITY: "availability",
    }
)
