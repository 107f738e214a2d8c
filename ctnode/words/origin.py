"""Who an object comes from: a ctnode or a scanner, a peer of the configuration or somebody else."""

from __future__ import annotations

from typing import Final

PRODUCT: Final = "ctnode"
# Of codes that no standard has (PS3.16 8.2).
CODING_SCHEME: Final = "99CTNODE"
# In counts, whoever is served and not in [[peers]].
UNKNOWN_PEER: Final = "unknown"


def is_product(value: str) -> bool:
    """Return whether an equipment attribute names ctnode, also with a version or with other values beside it.

    For Manufacturer, ManufacturerModelName and SoftwareVersions, of the object and of its contributing equipment
    (PS3.3 C.7.5.1, C.12.1.1.5). Archives that coerce patient, study or UIDs leave these alone; file meta information
    says nothing, since whoever stores a file writes its own there.
    """
    if PRODUCT not in value.lower():
        return False
    return any(part.strip(" \0").lower().replace("/", " ").split(" ")[0] == PRODUCT for part in value.split("\\"))
