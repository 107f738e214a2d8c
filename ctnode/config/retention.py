"""What may be deleted by itself, and when: the keys of ``[retention]``, all off by default."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, field_validator

from ctnode.config.fields import Section

Days = Annotated[FiniteFloat, Field(ge=0, le=36500)]


class Retention(Section):
    """What may be deleted by itself; nothing that is undelivered, held, unprocessed or newer than floor_days goes."""

    originals_days: Days = Field(
        0.0, description="days after which originals are deleted, counted from the last thing that was done; 0: never"
    )
    originals_gb: tuple[FiniteFloat, ...] = Field(
        (),
        strict=False,
        description="low and high mark of originals in gigabytes: over the high one, the oldest go down to the low one",
    )
    results_days: Days = Field(0.0, description="days after which results are deleted, counted likewise; 0: never")
    results_gb: tuple[FiniteFloat, ...] = Field(
        (), strict=False, description="low and high mark of results in gigabytes; empty: no limit"
    )
    floor_days: Days = Field(1.0, description="days in which nothing is deleted, whatever the marks say")
    resent: Literal["keep", "drop"] = Field(
        "keep", description="a deleted image that is sent again: keep it again, or answer success and drop it"
    )

    @field_validator("originals_gb", "results_gb")
    @classmethod
    def _two_marks_or_none(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if value and (len(value) != 2 or not 0 < value[0] < value[1]):
            raise ValueError("Input should be two numbers over 0, the low mark before the high one")
        return value

    @property
    def is_on(self) -> bool:
        """Return whether anything may be deleted at all."""
        return bool(self.originals_days or self.originals_gb or self.results_days or self.results_gb)
