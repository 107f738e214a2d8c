"""Which result files are sent to which targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ctnode.archive import outbox
from ctnode.config import Target
from ctnode.flow.publish import digest_of

# Kinds of results that can be sent, and the file of each.
SENDABLE: Final = {"report": "report.dcm", "seg": "seg.dcm", "sr": "sr.dcm"}


def parcels_of(
    targets: Sequence[Target], outputs: Sequence[str], folder: Path, final: Path, results: Path
) -> list[outbox.Parcel]:
    """Return what the targets are to get of the outputs in ``folder``, which is or will be ``final``."""
    relative = final.relative_to(results)
    return [
        outbox.Parcel(target.name, kind, str(relative / SENDABLE[kind]), digest_of(folder / SENDABLE[kind]))
        for target in targets
        for kind in target.send
        if SENDABLE[kind] in outputs
    ]
