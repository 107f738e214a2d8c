"""What all sections of the configuration share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
ResultKind = Literal["report"]


class Section(BaseModel):
    """A frozen table of the configuration without room for unknown keys."""

    # TOML and JSON know numbers, texts and truth values apart: "104" is no port, and neither is true.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
