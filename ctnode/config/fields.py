"""What the sections of the configuration are made of: their base and the kinds of values that several of them have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

# PS3.5 6.2: up to 16 characters of the default repertoire, no backslash, not only spaces.
AeTitle = Annotated[
    str, StringConstraints(strip_whitespace=True, pattern=r"^[\x21-\x5b\x5d-\x7e][\x20-\x5b\x5d-\x7e]{0,15}$")
]
# PS3.5 6.2, CS.
Modality = Annotated[str, StringConstraints(pattern=r"^[A-Z0-9_][A-Z0-9_ ]{0,15}$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Side = Annotated[int, Field(ge=1, le=4096)]
Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]
Uid = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64)]
ResultKind = Literal["report", "seg", "sr"]


class Section(BaseModel):
    """A table of the configuration, frozen; what it does not know is an error."""

    # TOML and JSON know numbers, texts and truth values apart: "104" is no port, and neither is true.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
