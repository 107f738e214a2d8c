"""The keys of routing: which series are computed, and what of them goes where."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, field_validator, model_validator

from ctnode.config.fields import Name, ResultKind, Section
from ctnode.config.when import compile_when, uses_results

ORIGINALS: Final = "originals"


class Routing(Section):
    """How [[routes]] are read; without any, every CT series is computed and sent as [[targets]] say."""

    match: Literal["all", "first"] = Field(
        "all", description="all: every route that fits fires; first: the first one in the file"
    )


class Route(Section):
    """One route: what is computed of the series that fit, and what of them is sent where."""

    name: Name = Field(description="name of the route in logs and commands")
    when: str = Field("", description="condition, see docs/routing.md; empty: what no other route of this level takes")
    level: Literal["series", "study"] = Field(
        "series", description="series: each by itself; study: all series of a study once one fits and all are complete"
    )
    required: tuple[str, ...] = Field(
        (),
        strict=False,
        description="of a study: conditions, each for a complete series of its own; then the others are not waited for",
    )
    run: Literal["pipeline", "none"] = Field("pipeline", description="what is computed; none: only kept and sent")
    send: tuple[ResultKind | Literal["originals"], ...] = Field(
        (), strict=False, description="kinds of results that are sent, and originals"
    )
    to: tuple[Name, ...] = Field((), strict=False, description="names of the [[targets]] that get it")
    priority: Literal["low", "normal", "high"] = Field(
        "normal", description="whose jobs and deliveries come first; within one priority the oldest do"
    )

    @field_validator("when")
    @classmethod
    def _compiles(cls, value: str) -> str:
        if value:
            compile_when(value)
        return value

    @field_validator("required")
    @classmethod
    def _all_compile(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            compile_when(value)
        return values

    @property
    def is_default(self) -> bool:
        """Return whether it takes what no other route of its level takes."""
        return not self.when and not self.required

    @property
    def conditions(self) -> tuple[str, ...]:
        """Return all conditions that it has."""
        return (*([self.when] if self.when else []), *self.required)

    @model_validator(mode="after")
    def _makes_sense(self) -> Route:
        if bool(self.send) != bool(self.to):
            raise ValueError("send and to belong together: what is sent, and where")
        asks = bool(self.when) and uses_results(compile_when(self.when))
        if self.run == "none" and (asks or set(self.send) - {ORIGINALS}):
            raise ValueError('run = "none" makes no results that could be asked for or sent')
        if self.level == "study" and asks:
            raise ValueError("a route of a study is decided when the study is complete, before there are results")
        if self.required and self.level != "study":
            raise ValueError('required needs level = "study"')
        if any(uses_results(compile_when(one)) for one in self.required):
            raise ValueError("required is decided when the series are complete, before there are results")
        return self
