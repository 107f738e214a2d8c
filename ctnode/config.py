"""The configuration: file < environment < command line, checked whole, explained by key.

Every key has a default that works. Unknown keys are errors that name the nearest known one. ``document()``
renders the commented ``config.toml`` of the repository from the models below, so the two cannot drift apart.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ctnode.words import ConfigError, Unavailable

ENVIRONMENT_PREFIX: Final = "CTNODE_"
SYSTEM_CONFIG: Final = Path("/etc/ctnode/config.toml")

# PS3.5 6.2: up to 16 characters of the default repertoire, no backslash, not only spaces.
AeTitle = Annotated[
    str, StringConstraints(strip_whitespace=True, pattern=r"^[\x21-\x5b\x5d-\x7e][\x20-\x5b\x5d-\x7e]{0,15}$")
]
Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]
ResultKind = Literal["report"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Node(_Section):
    """The node on the network."""

    ae_title: AeTitle = Field("CTNODE", description="AE title of the node, used when it calls others")
    host: str = Field("127.0.0.1", description="address to listen on; anything but loopback needs [[peers]]")
    port: int = Field(11112, ge=0, le=65535, description="port to listen on; 0 takes any free one, see `ctnode status`")
    called_ae_titles: tuple[AeTitle, ...] = Field((), description="called AE titles that are served; empty: any")
    accept_unknown: bool = Field(default=False, description="serve callers that are not in [[peers]]")
    drain_s: float = Field(30.0, ge=0, le=3600, description="seconds that open associations may finish after SIGTERM")


class Storage(_Section):
    """Where everything lies."""

    root: str = Field(
        "ctnode-data", description="folder of the node: incoming/ store/ results/ quarantine/ run/ ctnode.db"
    )
    results: str = Field("", description="folder of the results; empty: results/ below the root")
    reserve_mb: int = Field(
        1024, ge=0, description="free megabytes under which new associations are refused as transient"
    )
    reserve_inodes: int = Field(
        10000, ge=0, description="free inodes under which new associations are refused as transient"
    )


class Receiver(_Section):
    """The DICOM port."""

    processes: int = Field(1, ge=1, le=64, description="receiver processes behind the one listening socket")
    max_associations: int = Field(200, ge=1, le=900, description="associations at the same time, over all processes")
    max_pdu: int = Field(131072, ge=4096, le=1048576, description="largest PDU in bytes that is offered to peers")
    max_object_mb: int = Field(8192, ge=1, description="largest single object in megabytes that is taken")
    request_timeout_s: Seconds = Field(30.0, description="seconds a new connection has for its A-ASSOCIATE-RQ")
    idle_timeout_s: Seconds = Field(60.0, description="seconds an association may be silent before it is aborted")


class Completion(_Section):
    """When a series counts as complete."""

    quiet_s: Seconds = Field(10.0, description="seconds without a new instance after which a series is complete")
    called_ae_quiet_s: Mapping[AeTitle, Seconds] = Field(
        {},
        description="quiet seconds by called AE title, for example { FAST = 3 }; a peer's own quiet_s comes first",
    )
    max_wait_s: Seconds = Field(900.0, description="seconds since the first instance after which waiting ends")
    association_hold_s: Seconds = Field(
        60.0, description="seconds of silence after which an open association holds nothing"
    )


class Worker(_Section):
    """Who computes, and within which limits."""

    processes: int = Field(1, ge=1, le=64, description="jobs at the same time")
    memory_mb: int = Field(4096, ge=256, description="resident megabytes at which the child of a job is stopped")
    timeout_s: Seconds = Field(1800.0, description="seconds after which the child of a job is stopped")


class Pipeline(_Section):
    """What is computed."""

    spacing_mm: float = Field(
        1.0, ge=0.2, le=20, description="edge in millimetres of the isotropic voxels of ct_iso and lungs_iso"
    )


class Delivery(_Section):
    """How results are sent, and sent again."""

    first_retry_s: Seconds = Field(
        10.0, description="seconds until the second try; each further one waits twice as long"
    )
    max_retry_s: Seconds = Field(3600.0, description="longest wait in seconds between two tries")
    timeout_s: Seconds = Field(60.0, description="seconds a destination may take for one answer")


class Inbox(_Section):
    """The watched folder."""

    path: str = Field("", description="folder whose files and zips are imported and then removed; empty: none")
    settle_s: float = Field(
        2.0, ge=0, le=3600, description="seconds a file must keep its size and time before it is read"
    )


class Log(_Section):
    """What the node says."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is written")
    format: Literal["auto", "text", "json"] = Field(
        "auto", description="text, json, or auto: text on a terminal, else json"
    )


class Peer(_Section):
    """One sender that is known by AE title and host."""

    name: Name = Field(description="name of the peer in logs and commands")
    ae_title: AeTitle = Field(description="calling AE title of the peer")
    host: str = Field(description="address, host name or network (10.1.2.0/24) the peer calls from")
    port: Port | None = Field(None, description="port of the peer's own SCP, for `ctnode echo`")
    quiet_s: Seconds | None = Field(
        None, description="quiet time of series from this peer; default: that of [completion]"
    )


class Target(_Section):
    """One destination of results."""

    name: Name = Field(description="name of the destination in logs and commands")
    ae_title: AeTitle = Field(description="called AE title of the destination")
    host: str = Field(description="host of the destination")
    port: Port = Field(description="port of the destination")
    send: tuple[ResultKind, ...] = Field(("report",), description="kinds of results that are sent by themselves")


class Config(_Section):
    """The whole configuration, frozen."""

    node: Node = Field(default_factory=Node)
    storage: Storage = Field(default_factory=Storage)
    receiver: Receiver = Field(default_factory=Receiver)
    completion: Completion = Field(default_factory=Completion)
    worker: Worker = Field(default_factory=Worker)
    pipeline: Pipeline = Field(default_factory=Pipeline)
    delivery: Delivery = Field(default_factory=Delivery)
    inbox: Inbox = Field(default_factory=Inbox)
    log: Log = Field(default_factory=Log)
    peers: tuple[Peer, ...] = ()
    targets: tuple[Target, ...] = ()

    @property
    def root(self) -> Path:
        """Return the folder of the node."""
        return Path(self.storage.root)

    @property
    def results(self) -> Path:
        """Return the folder of the results."""
        return Path(self.storage.results) if self.storage.results else self.root / "results"

    def digest(self) -> str:
        """Return 12 hex digits that change with any value."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


# Keys that a running node takes over on SIGHUP; everything else needs a restart.
RELOADABLE: Final = frozenset(
    {
        "node.called_ae_titles", "node.accept_unknown", "node.drain_s", "storage.reserve_mb", "storage.reserve_inodes",
        "receiver.max_associations", "receiver.max_object_mb", "receiver.request_timeout_s", "receiver.idle_timeout_s",
        "completion.quiet_s", "completion.called_ae_quiet_s", "completion.max_wait_s", "completion.association_hold_s",
        "worker.memory_mb", "worker.timeout_s", "pipeline.spacing_mm", "delivery.first_retry_s", "delivery.max_retry_s",
        "delivery.timeout_s", "inbox.settle_s", "log.level", "peers", "targets",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration and where each value came from (``default``, a file, ``environment``, ``command line``)."""

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
    _check_names(config)
    return Loaded(_absolute(config, file, origin), file, origin)


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
        if dotted not in _KEYS:
            raise ConfigError(f"{variable}: no such key{_nearest(dotted)}", hint="variables are CTNODE_SECTION__KEY")
        yield dotted, _parse_text(dotted, text, variable)


def _parse_text(dotted: str, text: str, variable: str) -> object:
    annotation = _KEYS[dotted].annotation
    if annotation is str or (get_args(annotation) and all(isinstance(arg, str) for arg in get_args(annotation))):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        if dotted == "node.ae_title":
            return text
        raise ConfigError(f"{variable}: {text!r} is no number, true, false or JSON list") from None


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
    meaning = _KEYS[known].description if known in _KEYS else ""
    shown = "" if fault["type"] == "missing" else f", not {fault['input']!r}"
    return f"{place}: {fault['msg']}{shown}" + (f"; it is the {meaning}" if meaning else "")


def _nearest(dotted: str) -> str:
    candidates = difflib.get_close_matches(dotted, list(_KEYS), n=1, cutoff=0.5)
    if not candidates:
        leaf = dotted.rpartition(".")[2]
        candidates = [key for key in _KEYS if key.rpartition(".")[2] == leaf][:1]
    return f"; did you mean {candidates[0]}?" if candidates else ""


def _check_names(config: Config) -> None:
    for label, names in (
        ("peers", [peer.name for peer in config.peers]),
        ("targets", [t.name for t in config.targets]),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"{label}.name: {', '.join(twice)} stands twice", hint="names must be unique")


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
    return config.model_copy(update={"storage": storage, "inbox": inbox})


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
        meaning = _KEYS[key].description if key in _KEYS else ""
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


def _all_keys() -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for section, outer in Config.model_fields.items():
        model = outer.annotation
        if section in _LISTS:
            keys[section] = outer
            model = _LISTS[section]
        if isinstance(model, type) and issubclass(model, BaseModel):
            keys.update({f"{section}.{key}": inner for key, inner in model.model_fields.items()})
    return keys


_LISTS: Final[Mapping[str, type[_Section]]] = {"peers": Peer, "targets": Target}
_KEYS: Final[Mapping[str, Any]] = _all_keys()

_EXAMPLES: Final[Mapping[str, Mapping[str, object]]] = {
    "peers": {"name": "ct1", "ae_title": "CT1", "host": "192.0.2.10", "port": 104, "quiet_s": 5.0},
    "targets": {"name": "pacs", "ae_title": "PACS", "host": "192.0.2.20", "port": 104, "send": ["report"]},
}


def document() -> str:
    """Render the commented ``config.toml`` that lists every key with its default and its meaning."""
    lines = [
        "# Every key of ctnode with its default and its meaning. Delete what you do not change.",
        "# Found as --config FILE, $CTNODE_CONFIG, ./config.toml or /etc/ctnode/config.toml; any key can be set as",
        "# CTNODE_SECTION__KEY in the environment. `ctnode check-config` names each mistake; SIGHUP reloads what is",
        "# marked (reloads). Relative paths are relative to this file.",
    ]
    for section, outer in Config.model_fields.items():
        model = _LISTS.get(section) or outer.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        listed = section in _LISTS
        lines += ["", f"# {(model.__doc__ or '').strip()}" + (" (reloads)" if section in RELOADABLE else "")]
        lines.append(f"# [[{section}]]" if listed else f"[{section}]")
        for key, inner in model.model_fields.items():
            value = _EXAMPLES[section][key] if listed else inner.get_default(call_default_factory=True)
            mark = " (reloads)" if f"{section}.{key}" in RELOADABLE else ""
            lines.append(f"{'# ' if listed else ''}{key} = {_toml(value)}  # {inner.description}{mark}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)
