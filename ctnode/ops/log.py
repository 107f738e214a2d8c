"""What the node says: one line per event, fields from an allow-list, no text of a patient.

Events are constants and fields are those of a list, which a test keeps true for every call. What a library says is told
by its name and the place in its code, never in its words, since pydicom and pynetdicom quote element values.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Final, TextIO

import structlog
from structlog.contextvars import bind_contextvars, merge_contextvars, unbind_contextvars

from ctnode.config import Log

# Only these fields are ever written; any other becomes "[redacted]", so that a careless call cannot leak a header.
ALLOWED_FIELDS: Final = frozenset(
    {
        "event", "level", "timestamp", "role", "pid", "error", "hint", "peer", "address", "calling_ae", "called_ae",
        "association", "study", "series", "sop_instance", "revision", "job", "attempt", "target", "status", "state",
        "verdict", "seconds", "count", "instances", "bytes", "path", "reason", "code", "key", "keys", "port", "host",
        "signal", "exit_code", "step", "door", "limit", "free_mb", "restart_in_s", "digest", "contexts", "refused",
        "accepted", "duplicates", "exception", "what", "missing", "failures", "again_in_s", "delivery", "library",
        "kind", "rule",
    }
)  # fmt: skip
# What stands here came from a peer and may be anything: what is no UID is said by its digest, as in ``store/``.
_UID_FIELDS: Final = ("study", "series", "sop_instance")
_UID: Final = re.compile(r"[0-9.]{1,64}(~[0-9]+)?")
# Longer texts are cut: a line of the journal is for one event.
LONGEST: Final = 500
_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
# These libraries quote element values in their messages.
_TALKATIVE: Final = ("pydicom", "pynetdicom", "gdcm")
# One place in a library is told once in so long, with how often it spoke meanwhile.
LIBRARY_S: Final = 60.0


def configure(settings: Log, *, role: str) -> None:
    """Set up logging of this process on standard error."""
    as_text = settings.format == "text" or (settings.format == "auto" and sys.stderr.isatty())
    processors: list[Any] = [
        merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _Stamp(role),
        _redact,
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if as_text else structlog.processors.JSONRenderer(),
    ]
    if is_journal(sys.stderr):
        processors.append(_prefix_priority)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(settings.level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    rewriter = _Rewriter()
    for name in _TALKATIVE:
        library = logging.getLogger(name)
        library.handlers = [rewriter]
        library.propagate = False
        library.setLevel(logging.WARNING)
    # "always": the other filters remember each text that was warned of, and with it what it quotes.
    warnings.simplefilter("always")
    for of_developers in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", of_developers)
    warnings.showwarning = rewriter.warn


def get(**fields: object) -> structlog.typing.FilteringBoundLogger:
    """Return a logger that carries ``fields``."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(**fields)
    return logger


def bind(**fields: object) -> None:
    """Let every line of this thread carry ``fields`` from now on, whoever writes it."""
    bind_contextvars(**fields)


def unbind(*names: str) -> None:
    """Let the lines of this thread carry these fields no longer."""
    unbind_contextvars(*names)


def place(error: BaseException) -> str:
    """Return the kind of an exception and where in our own code it came up; its words may quote a value."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "ctnode" in frame.filename]
    where = f" in {Path(frames[-1].filename).stem}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


def is_journal(stream: TextIO) -> bool:
    """Return whether a stream is the journal's (systemd.exec(5), JOURNAL_STREAM) and not something it was sent to."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


class _Stamp:
    def __init__(self, role: str) -> None:
        self.role = role

    def __call__(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["role"] = self.role
        event["pid"] = os.getpid()
        return event


def _redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if key not in ALLOWED_FIELDS:
            event[key] = "[redacted]"
        elif isinstance(value, str):
            is_uid = key not in _UID_FIELDS or not value or _UID.fullmatch(value)
            event[key] = value[:LONGEST] if is_uid else f"x-{_digest(value)}"
    return event


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _prefix_priority(_logger: object, method: str, text: str) -> str:
    return f"<{_PRIORITIES.get(method, 6)}>{text}"


class _Rewriter(logging.Handler):
    """Says where a library spoke, and not what."""

    def __init__(self) -> None:
        super().__init__()
        # By place: when it was told last, and how often it spoke since.
        self._known: dict[tuple[str, str], tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Tell of a record of a library."""
        level = logging.ERROR if record.levelno >= logging.ERROR else logging.WARNING
        self._say(level, record.name, f"{record.module}:{record.lineno}")

    def warn(
        self,
        message: Warning | str,  # noqa: ARG002 - it may quote a value
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,  # noqa: ARG002 - all goes the way of the log
        line: str | None = None,  # noqa: ARG002
    ) -> None:
        """Tell of a warning, in place of ``warnings.showwarning``."""
        self._say(logging.WARNING, category.__name__, f"{Path(filename).stem}:{lineno}")

    def _say(self, level: int, library: str, where: str) -> None:
        now = time.monotonic()
        told_s, count = self._known.get((library, where), (-LIBRARY_S, 0))
        if now - told_s < LIBRARY_S:
            self._known[library, where] = (told_s, count + 1)
            return
        self._known[library, where] = (now, 0)
        get().log(level, "library message", library=library, code=where, count=count + 1)
