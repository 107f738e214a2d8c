"""The writers of results: each module of this package writes one, and adding one is adding a file.

A module is named for what it writes and has three names of its own:

* ``AFTER``: the ``Stage`` that has to be there,
* ``available(case)``: whether it may write, by configuration and by what the volume is,
* ``write(case)``: write into ``case.folder`` and return the paths.

A key of ``[outputs]`` with the name of the module switches it: while that is false or ``"none"``, the module is not
even imported. A module without such a key answers by ``available`` alone. The order of the names is that of writing.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Final, Protocol, cast

from ctnode.config import Outputs
from ctnode.results.case import Case, Stage

_OFF: Final = (False, "none")


class Writer(Protocol):
    """What a module of this package looks like."""

    AFTER: Stage

    def available(self, case: Case) -> bool:
        """Return whether ``write`` may be called with ``case``."""
        ...

    def write(self, case: Case) -> tuple[Path, ...]:
        """Write the files, whole and synced, and return their paths."""
        ...


def names() -> tuple[str, ...]:
    """Return the names of all writers, in their order."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def wanted_writers(wanted: Outputs) -> tuple[Writer, ...]:
    """Return the writers that ``wanted`` does not switch off, in the order of their names; imports them."""
    on = [name for name in names() if getattr(wanted, name, True) not in _OFF]
    return tuple(cast(Writer, importlib.import_module(f"{__name__}.{name}")) for name in on)
