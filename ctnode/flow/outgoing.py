"""What leaves the node: the object itself inside the hospital, its de-identified form outside."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ctnode.config import Config, Target
from ctnode.words import ConfigError


def outgoing(config: Config, target: Target, path: Path, scratch: Path) -> Path:
    """Return the file to send to ``target`` instead of ``path``: itself, or a new one in the folder ``scratch``.

    Raises
    ------
    ConfigError
        If the target is external and its profile or key is not there: nothing may be sent.
    Refusal
        If the object cannot be de-identified.
    """
    if not target.external and not target.deidentify:
        return path
    from ctnode.results.deid import Profile, deidentify_file

    chosen = next((profile for profile in config.deidentification if profile.name == target.deidentify), None)
    if chosen is None:
        raise ConfigError(f"{target.name} is external and names no profile of de-identification")
    try:
        key = Path(chosen.key_file).read_bytes()
    except OSError as error:
        raise ConfigError(f"the key of the profile {chosen.name} cannot be read: {error.strerror}") from None
    made = scratch / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.dcm"
    deidentify_file(path, made, Profile(chosen.project, key))
    return made
