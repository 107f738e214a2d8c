"""Exit codes, DIMSE statuses and the one tree of errors.

The error tree::

    CtnodeError
    ├── ConfigError          exit 78: a key, its meaning, the nearest known key
    ├── Unavailable          exit 69: no root, another node holds it, a port is taken
    ├── StorageError         A700: disk full, read-only, failing
    ├── BadInstance          C000: unreadable, without UIDs, a UID that cannot be kept
    │   ├── Mismatch         A900: command and data set name different objects
    │   └── WrongContext     0122: an object of another SOP class than its presentation context
    ├── Refusal              a series that cannot become a volume, and why
    ├── NotFound             exit 1: no such series, job, destination
    ├── WrongState           exit 1: the object is in a state that does not allow this
    └── LostLease            somebody else owns the job now
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the commands return (``sysexits.h`` where a name exists there)."""

    OK = 0
    FINDINGS = 1
    USAGE = 2
    UNAVAILABLE = 69
    BAD_CONFIG = 78


class DimseStatus(IntEnum):
    """C-STORE response statuses that the node uses (PS3.4 B.2.3, PS3.7 C)."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    OUT_OF_RESOURCES = 0xA700
    DATA_SET_MISMATCH = 0xA900
    CANNOT_UNDERSTAND = 0xC000


class CtnodeError(Exception):
    """Something went wrong that a person has to know: what, which object, what to do.

    Parameters
    ----------
    message
        What happened and to which object; never a name, an ID or a date of a patient.
    hint
        What the reader can do about it.
    """

    retryable: bool = False
    dimse_status: DimseStatus = DimseStatus.PROCESSING_FAILURE
    exit_code: ExitCode = ExitCode.FINDINGS

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(CtnodeError):
    """The configuration names an unknown key, a wrong type or an impossible value."""

    exit_code = ExitCode.BAD_CONFIG


class Unavailable(CtnodeError):
    """What the command needs is not there: a root, a port, a lock."""

    retryable = True
    exit_code = ExitCode.UNAVAILABLE


class StorageError(CtnodeError):
    """The storage did not take the bytes; nothing was acknowledged."""

    retryable = True
    dimse_status = DimseStatus.OUT_OF_RESOURCES


class BadInstance(CtnodeError):
    """One data set that cannot be kept under a name; the association goes on."""

    dimse_status = DimseStatus.CANNOT_UNDERSTAND


class Mismatch(BadInstance):
    """The command set and the data set name different objects (PS3.4 B.2.3)."""

    dimse_status = DimseStatus.DATA_SET_MISMATCH


class WrongContext(BadInstance):
    """The command names a SOP class that was not negotiated for its presentation context (PS3.7 9.1.1.1.9)."""

    dimse_status = DimseStatus.SOP_CLASS_NOT_SUPPORTED


class Refusal(CtnodeError):
    """A series that cannot become a volume without guessing."""

    def __init__(self, message: str, *, code: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class NotFound(CtnodeError):
    """No object of this name in the index."""


class WrongState(CtnodeError):
    """The object's state does not allow what was asked."""


class LostLease(CtnodeError):
    """The job was given to another worker meanwhile; this one's result is not published."""
