"""What the node says: one line per event, fields from an allow-list, no text of a patient."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

from ctnode.config import Log

# Only these fields are ever written; any other becomes "[redacted]", so that a careless call cannot leak a header.
ALLOWED_FIELDS: Final = frozenset(
    {
        "event", "level", "timestamp", "role", "pid", "error", "hint", "peer", "address", "calling_ae", "called_ae",
        "association", "study", "series", "sop_instance", "revision", "job", "attempt", "target", "status", "state",
        "verdict", "seconds", "count", "instances", "bytes", "path", "reason", "code", "key", "keys", "port", "host",
        "signal", "exit_code", "step", "door", "limit", "free_mb", "restart_in_s", "digest", "contexts", "refused",
        "accepted", "duplicates", "exception", "what", "missing", "failures", "again_in_s",
    }
)  # fmt: skip
_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
# These libraries quote element values in their messages.
_TALKATIVE: Final = ("pydicom", "pynetdicom", "py.warnings", "gdcm")


def configure(settings: Log, *, role: str) -> None:
    """Set up logging of this process on standard error."""
    journal = bool(os.environ.get("JOURNAL_STREAM"))
    as_text = settings.format == "text" or (settings.format == "auto" and sys.stderr.isatty())
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _Stamp(role),
        _redact,
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if as_text else structlog.processors.JSONRenderer(),
    ]
    if journal:
        processors.append(_prefix_priority)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(settings.level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.captureWarnings(capture=True)
    warnings.simplefilter("ignore")
    for name in _TALKATIVE:
        library = logging.getLogger(name)
        library.handlers = [logging.NullHandler()]
        library.propagate = False
        library.setLevel(logging.CRITICAL + 1)


def get(**fields: object) -> structlog.typing.FilteringBoundLogger:
    """Return a logger that carries ``fields``."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(**fields)
    return logger


class _Stamp:
    def __init__(self, role: str) -> None:
        self.role = role

    def __call__(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["role"] = self.role
        event["pid"] = os.getpid()
        return event


def _redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in event:
        if key not in ALLOWED_FIELDS:
            event[key] = "[redacted]"
    return event


def _prefix_priority(_logger: object, method: str, text: str) -> str:
    return f"<{_PRIORITIES.get(method, 6)}>{text}"
