"""What leaves the node: the object itself inside the hospital, its de-identified form outside."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ctnode.archive.layout import Layout
from ctnode.config import Config, Target
from ctnode.flow.carrier import Named, named
from ctnode.words import ConfigError

if TYPE_CHECKING:
    from ctnode.results.deid import Profile

_SCRATCH: Final = "outgoing-"


@dataclass(frozen=True, slots=True)
class Item:
    """A file on its way: what is sent, and the relative name a folder gets it under."""

    path: Path
    name: str


def is_rewritten(target: Target) -> bool:
    """Return whether a destination gets other objects than those of the node."""
    return target.external or bool(target.deidentify)


def scratch_of(layout: Layout) -> Path:
    """Return a folder for de-identified objects that nobody else has; it is made when it is needed."""
    return layout.run / f"{_SCRATCH}{uuid.uuid4().hex}"


def sweep(layout: Layout) -> int:
    """Remove the scratch folders that processes left which were killed; returns how many."""
    left = list(layout.run.glob(f"{_SCRATCH}*"))
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
    return len(left)


def outgoing(config: Config, target: Target, path: Path, scratch: Path) -> Path:
    """Return the file to send to ``target`` instead of ``path``: itself, or a new one in the folder ``scratch``.

    Raises
    ------
    ConfigError
        If the target is external and its profile or key is not there: nothing may be sent.
    Refusal
        If the object cannot be de-identified.
    OSError
        If the object cannot be read, or its new form not be written, at the moment.
    """
    if not is_rewritten(target):
        return path
    from ctnode.results.deid import deidentify_file

    profile = _profile(config, target)
    scratch.mkdir(mode=0o700, exist_ok=True)
    made = scratch / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.dcm"
    deidentify_file(path, made, profile)
    return made


def outgoing_item(config: Config, target: Target, path: Path, name: str, scratch: Path) -> Item:
    """Do the same, with the relative name: that of a new file is made of its own UIDs, for the old one tells others.

    Raises
    ------
    ConfigError, Refusal, OSError
        As ``outgoing``.
    """
    made = outgoing(config, target, path, scratch)
    if made == path:
        return Item(path, name)
    one = named(made)
    assert one is not None
    return Item(made, f"{one.study}/{one.series}/{one.sop_instance}.dcm")


def outgoing_names(config: Config, target: Target, path: Path) -> Named | None:
    """Return the names that ``target`` knows the object of ``path`` by; None where the file cannot be read any more.

    Raises
    ------
    ConfigError
        As ``outgoing``.
    """
    one = named(path)
    if one is None or not is_rewritten(target):
        return one
    mapped = _profile(config, target).mapped_uid
    return Named(one.sop_class, mapped(one.sop_instance), mapped(one.study), mapped(one.series))


def _profile(config: Config, target: Target) -> Profile:
    from ctnode.results.deid import Profile

    chosen = next((profile for profile in config.deidentification if profile.name == target.deidentify), None)
    if chosen is None:
        raise ConfigError(f"{target.name} is external and names no profile of de-identification")
    try:
        key = Path(chosen.key_file).read_bytes()
    except OSError as error:
        raise ConfigError(f"the key of the profile {chosen.name} cannot be read: {error.strerror}") from None
    return Profile(chosen.project, key)
