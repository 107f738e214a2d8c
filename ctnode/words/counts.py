"""What the headers of a series say of how many images there should be, beside what is held."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Acquisition:
    """One acquisition and its Images in Acquisition (0020,1002), which may span several series (PS3.3 C.7.10.1).

    Parameters
    ----------
    number
        AcquisitionNumber (0020,0012), None where the images have none.
    stated
        How many images there are by its headers, the largest number that one of them gives.
    held, held_in_study
        How many images of it the node has in this series, and in all series of the study; each frame counts.
    """

    number: int | None
    stated: int
    held: int
    held_in_study: int


@dataclass(frozen=True, slots=True)
class Concatenation:
    """The parts of one multi-frame image that was cut into several instances (PS3.3 C.7.6.16.2.2.4).

    Parameters
    ----------
    uid
        ConcatenationUID (0020,9161).
    total
        In-concatenation Total Number (0020,9163), None where no part gives it.
    parts
        The In-concatenation Numbers (0020,9162) that are held, sorted; they begin with 1.
    """

    uid: str
    total: int | None
    parts: tuple[int, ...]

    @property
    def missing(self) -> int:
        """Return how many parts have certainly not come: up to the total, else up to the last that has."""
        last = self.total if self.total is not None else max(self.parts, default=0)
        return sum(part not in self.parts for part in range(1, last + 1))


@dataclass(frozen=True, slots=True)
class Content:
    """What the headers of the current instances of a series say.

    Parameters
    ----------
    positions_mm
        Slice positions along the normal, localizers left out.
    numbers
        The InstanceNumbers of all that have one.
    acquisitions
        Those that state a number of images.
    concatenations
        Those that parts of are held.
    frames
        Frames of the multi-frame instances, which ``multiframes`` counts.
    """

    positions_mm: tuple[float, ...] = ()
    numbers: tuple[int, ...] = ()
    acquisitions: tuple[Acquisition, ...] = ()
    concatenations: tuple[Concatenation, ...] = ()
    multiframes: int = 0
    frames: int = 0
