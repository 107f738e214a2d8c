"""Who may log in: one line for each in the file ``web.users``, with an scrypt hash of a password or a hashed token.

A line is ``NAME ROLE HASH``. Passwords are hashed with scrypt (RFC 7914) and a salt of their own; tokens are 256 random
bits, for which SHA-256 is enough. The file is read anew when it changes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from ctnode.words import ConfigError

# 32 MB and some 80 ms for each try; OWASP's second choice of parameters.
_N: Final = 1 << 15
_R: Final = 8
_P: Final = 3
_MEMORY_BYTES: Final = 64 << 20
_LARGEST_COST: Final = 1 << 20
_PASSWORD_LIMIT: Final = 1024
LEAST_PASSWORD: Final = 10
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")


class Role(StrEnum):
    """What somebody may do: look, or act as well."""

    VIEW = "view"
    OPERATE = "operate"


@dataclass(frozen=True, slots=True)
class User:
    """One line of the file."""

    name: str
    role: Role
    secret: str


def password_line(name: str, role: Role, password: str) -> str:
    """Return the line of somebody with a password.

    Raises
    ------
    ConfigError
        If the name or the password cannot be used.
    """
    if not LEAST_PASSWORD <= len(password) <= _PASSWORD_LIMIT:
        raise ConfigError(f"a password has at least {LEAST_PASSWORD} characters")
    salt = secrets.token_bytes(16)
    return _line(name, role, f"scrypt:{_N}:{_R}:{_P}:{_encode(salt)}:{_encode(_scrypt(password, salt, _N, _R, _P))}")


def token_line(name: str, role: Role) -> tuple[str, str]:
    """Return the line of a program with a new token, and the token, which is kept nowhere."""
    token = secrets.token_urlsafe(32)
    return _line(name, role, f"sha256:{_digest(token)}"), token


def _line(name: str, role: Role, secret: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no user name", hint="letters, digits, and _ . @ - inside")
    return f"{name} {role} {secret}"


def read_users(path: Path) -> Mapping[str, User]:
    """Return the users of a file by name.

    Raises
    ------
    ConfigError
        If it cannot be read, or a line is not of its form; the message holds no secret.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"web.users: {path} cannot be read: {getattr(error, 'strerror', 'no text')}", hint="`ctnode user NAME`"
        ) from None
    found: dict[str, User] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split()
        is_whole = len(words) == 3 and words[1] in set(Role) and words[2].partition(":")[0] in {"scrypt", "sha256"}
        if not is_whole or not _NAME.fullmatch(words[0]) or words[0] in found:
            raise ConfigError(f"web.users: line {number} of {path} is not NAME ROLE HASH, or its name stands twice")
        found[words[0]] = User(words[0], Role(words[1]), words[2])
    return found


class Users:
    """The users of the configured file; without one everybody who reaches the page may do everything."""

    def __init__(self, file: str) -> None:
        self._path = Path(file) if file else None
        self._stamp: tuple[int, int, int] | None = None
        self._users: Mapping[str, User] = {}
        # One at a time: a flood of tries may not take a gigabyte.
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Return whether nobody has to log in."""
        return self._path is None

    def _known(self) -> Mapping[str, User]:
        if self._path is None:
            return {}
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp:
                self._users, self._stamp = read_users(self._path), stamp
        except (OSError, ConfigError):
            # A file that cannot be read lets nobody in.
            self._users, self._stamp = {}, None
        return self._users

    def find(self, name: str) -> User | None:
        """Return a user as the file has it now."""
        return self._known().get(name)

    def with_password(self, name: str, password: str) -> User | None:
        """Return the user of this name if the password is right; takes as long for a name that is not there."""
        with self._lock:
            user = self._known().get(name)
            kind, _, rest = (user.secret if user is not None else "").partition(":")
            is_right = _matches(rest, password) if kind == "scrypt" else _matches(_DUMMY, password) and False
            return user if is_right else None

    def with_token(self, token: str) -> User | None:
        """Return the user of a token."""
        wanted = f"sha256:{_digest(token)}"
        found = None
        for user in self._known().values():
            if hmac.compare_digest(user.secret.encode(), wanted.encode()):
                found = user
        return found


def _matches(rest: str, password: str) -> bool:
    try:
        n, r, p, salt, expected = rest.split(":")
        if len(password) > _PASSWORD_LIMIT or int(n) * int(r) > _LARGEST_COST:
            return False
        made = _scrypt(password, base64.b64decode(salt, validate=True), int(n), int(r), int(p))
        return hmac.compare_digest(made, base64.b64decode(expected, validate=True))
    except ValueError:
        return False


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=_MEMORY_BYTES, dklen=32)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


_DUMMY: Final = f"{_N}:{_R}:{_P}:{_encode(bytes(16))}:{_encode(bytes(32))}"
