"""Reading the configuration: file < credentials < environment < command line, checked whole, explained by key."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ctnode.config.models import FILES, KEYS, LISTS, RELOADABLE, TARGET_FILES, WEB_FILES, Config, Target
from ctnode.words import ConfigError, Unavailable

LEAST_KEY_BYTES: Final = 32
ENVIRONMENT_PREFIX: Final = "CTNODE_"
SYSTEM_CONFIG: Final = Path("/etc/ctnode/config.toml")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration and where each value came from: ``default``, a file, ``credential``, ``environment``, ..."""

    config: Config
    file: Path | None
    origin: Mapping[str, str]


def load(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Loaded:
    """Read, overlay and check the configuration.

    Parameters
    ----------
    path
        The file named on the command line; without it ``$CTNODE_CONFIG``, ``./config.toml``,
        ``/etc/ctnode/config.toml``, else the defaults.
    environment
        The environment (default: the process's own).
    overrides
        Dotted keys and values from the command line.

    Raises
    ------
    ConfigError
        With one line for each fault: the dotted path, what the key means, the nearest known key.
    """
    environment = os.environ if environment is None else environment
    file = _find_file(path, environment)
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    if file is not None:
        values = _read_file(file)
        origin.update(dict.fromkeys(_dotted(values), str(file)))
    for key, path_text in _from_credentials(environment):
        _put(values, key, path_text)
        origin[key] = "credential"
    for key, value in _from_environment(environment):
        _put(values, key, value)
        origin[key] = "environment"
    for key, value in (overrides or {}).items():
        _put(values, key, value)
        origin[key] = "command line"
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain_fault(fault) for fault in error.errors()), hint=str(file or "")) from None
    _check_together(config)
    config = _absolute(config, file, origin)
    _check_keys(config)
    return Loaded(config, file, origin)


def _find_file(path: Path | None, environment: Mapping[str, str]) -> Path | None:
    named = path or (Path(environment["CTNODE_CONFIG"]) if environment.get("CTNODE_CONFIG") else None)
    if named is not None:
        if not named.is_file():
            raise ConfigError(f"no configuration file at {named}", hint="check --config and $CTNODE_CONFIG")
        return named
    return next((place for place in (Path("config.toml"), SYSTEM_CONFIG) if place.is_file()), None)


def _read_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None


def _from_credentials(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the keys that the service manager provides as files (systemd.exec(5), LoadCredential=)."""
    folder = environment.get("CREDENTIALS_DIRECTORY", "")
    for key in (*(f"tls.{name}" for name in FILES), *(f"web.{name}" for name in WEB_FILES)) if folder else ():
        file = Path(folder) / key
        if file.is_file():
            yield key, str(file)


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, object]]:
    for variable, text in sorted(environment.items()):
        if (
            not variable.startswith(ENVIRONMENT_PREFIX)
            or variable == "CTNODE_CONFIG"
            or variable.startswith("CTNODE_TEST_")
        ):
            continue
        section, _, key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
        dotted = f"{section}.{key}" if key else section
        if dotted not in KEYS:
            raise ConfigError(f"{variable}: no such key{_nearest(dotted)}", hint="variables are CTNODE_SECTION__KEY")
        yield dotted, _parse_text(dotted, text, variable)


def _parse_text(dotted: str, text: str, variable: str) -> object:
    annotation = KEYS[dotted].annotation
    if annotation is str or (get_args(annotation) and all(isinstance(arg, str) for arg in get_args(annotation))):
        return text
    if text in {word for part in get_args(annotation) for word in get_args(part)}:
        return text  # one of the words that a number may be replaced with
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        words = {word for one in get_args(annotation) if get_origin(one) is Literal for word in get_args(one)}
        if dotted == "node.ae_title" or text in words:
            return text
        raise ConfigError(f"{variable}: {text!r} is no number, true, false or JSON list") from None


def from_words(pairs: Iterable[str]) -> dict[str, object]:
    """Return ``overrides`` for ``load`` out of words of a command line such as ``pipeline.spacing_mm=keep``.

    Raises
    ------
    ConfigError
        If one is not of this form, names no key, or its value cannot be read.
    """
    found: dict[str, object] = {}
    for pair in pairs:
        dotted, equals, text = pair.partition("=")
        if not equals or dotted not in KEYS or dotted.partition(".")[0] in LISTS:
            raise ConfigError(f"{pair}: no such key{_nearest(dotted)}", hint="write SECTION.KEY=VALUE")
        found[dotted] = _parse_text(dotted, text, dotted)
    return found


def _put(values: dict[str, Any], dotted: str, value: object) -> None:
    section, _, key = dotted.partition(".")
    if not key:
        values[section] = value
        return
    inner = values.setdefault(section, {})
    if not isinstance(inner, dict):
        raise ConfigError(f"{section}: must be a table")
    inner[key] = value


def _dotted(values: Mapping[str, Any]) -> Iterator[str]:
    for section, inner in values.items():
        if isinstance(inner, dict):
            yield from (f"{section}.{key}" for key in inner)
        else:
            yield section


def _explain_fault(fault: Any) -> str:
    place = ".".join(str(part) for part in fault["loc"])
    known = ".".join(str(part) for part in fault["loc"] if not isinstance(part, int))
    if fault["type"] == "extra_forbidden":
        return f"{place}: no such key{_nearest(known)}"
    key = ".".join(known.split(".")[:2])
    meaning = KEYS[key].description if key in KEYS else ""
    shown = "" if fault["type"] == "missing" else f", not {fault['input']!r}"
    return f"{place}: {fault['msg']}{shown}" + (f" (meaning: {meaning})" if meaning else "")


def _nearest(dotted: str) -> str:
    """Return a suggestion: the section that looks like it, a key of that very name elsewhere, or the closest key."""
    section, _, leaf = dotted.rpartition(".")
    if not section:
        sections = difflib.get_close_matches(dotted, list(Config.model_fields), n=1, cutoff=0.7)
        if sections:
            return f"; did you mean the section {sections[0]}?"
    elsewhere = [key for key in KEYS if key.rpartition(".")[2] == leaf]
    candidates = elsewhere or difflib.get_close_matches(dotted, list(KEYS), n=1, cutoff=0.5)
    return f"; did you mean {candidates[0]}?" if candidates else ""


def _check_together(config: Config) -> None:
    for label, names in (
        ("peers", [peer.name for peer in config.peers]),
        ("targets", [t.name for t in config.targets]),
        ("routes", [route.name for route in config.routes]),
        ("deidentification", [profile.name for profile in config.deidentification]),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"{label}.name: {', '.join(twice)} stands twice", hint="names must be unique")
    tls = config.tls
    if tls.certificate and tls.require_client_certificate and not tls.ca:
        raise ConfigError(
            "tls.ca: needed to check the certificates of peers", hint="or tls.require_client_certificate = false"
        )
    for target in config.targets:
        _check_target(target)
    _check_routes(config)
    _check_external(config)


def _check_external(config: Config) -> None:
    known = {profile.name for profile in config.deidentification}
    for target in config.targets:
        if target.external and not target.deidentify:
            raise ConfigError(
                f"targets.deidentify: {target.name} is external and names no profile of de-identification"
            )
        if target.deidentify and target.deidentify not in known:
            raise ConfigError(
                f"targets.deidentify: {target.name} names no profile {target.deidentify}",
                hint=f"known: {', '.join(sorted(known)) or 'no [[deidentification]] is configured'}",
            )


def _check_keys(config: Config) -> None:
    used = {target.deidentify for target in config.targets}
    for profile in config.deidentification:
        file = Path(profile.key_file)
        if profile.name in used and (not file.is_file() or file.stat().st_size < LEAST_KEY_BYTES):
            raise ConfigError(
                f"deidentification.key_file: {profile.name} needs a file of at least {LEAST_KEY_BYTES} random bytes",
                hint=f"head -c {LEAST_KEY_BYTES} /dev/urandom > {profile.key_file}",
            )


def _check_routes(config: Config) -> None:
    known = {target.name for target in config.targets}
    for route in config.routes:
        missing = sorted(set(route.to) - known)
        if missing:
            raise ConfigError(
                f"routes.to: {route.name} names no target {', '.join(missing)}",
                hint=f"known: {', '.join(sorted(known)) or 'no [[targets]] are configured'}",
            )
    for level in ("series", "study"):
        defaults = [route.name for route in config.routes if not route.when and route.level == level]
        if len(defaults) > 1:
            raise ConfigError(
                f"routes.when: {' and '.join(defaults)} are both the default of the level {level}",
                hint='give one a condition; "true" fits always',
            )


_NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "dicom": ("ae_title", "host", "port"),
    "dicomweb": ("url",),
    "folder": ("path",),
    "sender": (),
}


def _check_target(target: Target) -> None:
    for key in _NEEDED[target.kind]:
        if not getattr(target, key):
            raise ConfigError(f"targets.{key}: {target.name} needs it, for its kind is {target.kind}")
    if target.tls and not target.ca:
        raise ConfigError(f"targets.ca: {target.name} needs the authority that signed its certificate")
    if target.kind == "dicomweb" and not target.url.startswith(("http://", "https://")):
        raise ConfigError(f"targets.url: {target.name} needs one that begins with http:// or https://")
    if target.proof != "none" and (
        target.kind == "folder" or (target.kind, target.proof) == ("dicomweb", "commitment")
    ):
        raise ConfigError(f"targets.proof: {target.name} cannot give one of this kind", hint='"none" or "query"')


def _absolute(config: Config, file: Path | None, origin: Mapping[str, str]) -> Config:
    def resolve(dotted: str, value: str) -> str:
        base = file.parent if file is not None and origin.get(dotted) == str(file) else Path()
        return str((base / Path(value).expanduser()).resolve()) if value else ""

    storage = config.storage.model_copy(
        update={
            "root": resolve("storage.root", config.storage.root),
            "results": resolve("storage.results", config.storage.results),
        }
    )
    inbox = config.inbox.model_copy(update={"path": resolve("inbox.path", config.inbox.path)})
    tls = config.tls.model_copy(update={name: resolve(f"tls.{name}", getattr(config.tls, name)) for name in FILES})
    web = config.web.model_copy(update={name: resolve(f"web.{name}", getattr(config.web, name)) for name in WEB_FILES})
    targets = tuple(
        target.model_copy(update={name: resolve("targets", getattr(target, name)) for name in TARGET_FILES})
        for target in config.targets
    )
    profiles = tuple(
        profile.model_copy(update={"key_file": resolve("deidentification", profile.key_file)})
        for profile in config.deidentification
    )
    sections = {"storage": storage, "inbox": inbox, "tls": tls, "web": web}
    return config.model_copy(update={**sections, "targets": targets, "deidentification": profiles})


@dataclass(frozen=True, slots=True)
class Change:
    """One key that differs between two configurations."""

    key: str
    reloadable: bool


def diff(old: Config, new: Config) -> tuple[Change, ...]:
    """Return the keys whose values differ, each with whether a running node can take it over."""
    before, after = _flat(old), _flat(new)
    return tuple(Change(key, key in RELOADABLE) for key in before if before[key] != after[key])


def reloaded(old: Config, new: Config) -> Config:
    """Return ``old`` with the reloadable values of ``new``."""
    values = old.model_dump()
    fresh = new.model_dump()
    for change in diff(old, new):
        if change.reloadable:
            section, _, key = change.key.partition(".")
            if key:
                values[section][key] = fresh[section][key]
            else:
                values[section] = fresh[section]
    return Config.model_validate(values)


def explain(loaded: Loaded) -> Iterator[tuple[str, object, str, str]]:
    """Yield each key with its value, where the value came from, and its meaning."""
    for key, value in _flat(loaded.config).items():
        meaning = KEYS[key].description if key in KEYS else ""
        yield key, value, loaded.origin.get(key, "default"), meaning or ""


def require_root(config: Config) -> Path:
    """Return the root of a node that exists; a reading command never makes one.

    Raises
    ------
    Unavailable
        If there is no index below the root.
    """
    if not (config.root / "ctnode.db").is_file():
        raise Unavailable(f"no node at {config.root}", hint="start one with `ctnode run`, or name another storage.root")
    return config.root


def _flat(config: Config) -> dict[str, object]:
    flat: dict[str, object] = {}
    for section in Config.model_fields:
        value = getattr(config, section)
        if isinstance(value, BaseModel):
            flat.update({f"{section}.{key}": getattr(value, key) for key in type(value).model_fields})
        else:
            flat[section] = value
    return flat
