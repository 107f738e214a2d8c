"""Which reconstruction kernels are sharp: they amplify noise, and density numbers with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

# By vendor: Siemens B/Br/Bl/Bv/H.. from 50 on, GE by name, Philips by letters, Canon and Toshiba FC30 (bone) and
# FC50 to FC89 (lung, edge).
_SHARP: Final = re.compile(
    r"""^(?:
      [A-Z][A-Z]?(?P<siemens>[5-9]\d)[A-Z]?(?:\\?\d)?   # B60f, Br59, Bl57d, Hr68
    | (?:LUNG|BONE|BONEPLUS|EDGE|DETAIL|ULTRA|HD\ ?LUNG|CHST|CHEST)(?:[ +].*)?
    | (?:C|D|E|L|YB|YC|YD|YE)                           # Philips
    | FC(?:30|31|5\d|8\d)                               # Canon
    )$""",
    re.VERBOSE | re.IGNORECASE,
)


def kernel_of(technique: Mapping[str, object]) -> str:
    """Return the first value of ConvolutionKernel, '' without one."""
    value = technique.get("ConvolutionKernel")
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, (list, tuple)) and value:
        return str(value[0]).strip()
    return ""


def is_sharp(kernel: str) -> bool:
    """Return whether ``kernel`` is one of the sharp ones that are known by name; an unknown name is not."""
    return _SHARP.match(kernel.strip()) is not None
