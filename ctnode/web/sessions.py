"""Who is logged in, and how often one may try: kept in memory, so that a restart ends every session."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

COOKIE: Final = "ctnode_session"
SESSIONS_LIMIT: Final = 1000
ADDRESSES_LIMIT: Final = 1000
FREE_TRIES: Final = 5
FIRST_WAIT_S: Final = 2.0
LONGEST_WAIT_S: Final = 900.0
# Who looks at a series is written down once in so long, not for each of its pictures.
NEWS_S: Final = 3600.0
NEWS_LIMIT: Final = 10000


@dataclass(frozen=True, slots=True)
class _Session:
    user: str
    until_s: float


class Sessions:
    """Open sessions by the hash of their cookie, the token against forged requests, and the brake of the login."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._open: OrderedDict[str, _Session] = OrderedDict()
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._news: OrderedDict[tuple[str, ...], float] = OrderedDict()
        self._lock = threading.Lock()

    def is_news(self, *words: str) -> bool:
        """Return whether this was not asked for within the last ``NEWS_S``."""
        with self._lock:
            until_s = self._news.get(words, 0.0)
            if until_s > self._clock():
                return False
            self._news.pop(words, None)
            self._news[words] = self._clock() + NEWS_S
            while len(self._news) > NEWS_LIMIT:
                self._news.popitem(last=False)
            return True

    def open(self, user: str, seconds: float) -> str:
        """Begin a session and return the value of its cookie."""
        cookie = new_cookie()
        with self._lock:
            self._open[_key(cookie)] = _Session(user, self._clock() + seconds)
            while len(self._open) > SESSIONS_LIMIT:
                self._open.popitem(last=False)
        return cookie

    def user_of(self, cookie: str) -> str | None:
        """Return the name of who is logged in with a cookie."""
        with self._lock:
            session = self._open.get(_key(cookie))
            if session is None:
                return None
            if session.until_s <= self._clock():
                del self._open[_key(cookie)]
                return None
            return session.user

    def close(self, cookie: str) -> None:
        """End a session."""
        with self._lock:
            self._open.pop(_key(cookie), None)

    def csrf_of(self, cookie: str) -> str:
        """Return what a form has to bring along to prove that it is one of ours."""
        return hmac.new(self._secret, b"csrf:" + cookie.encode("utf-8", "replace"), hashlib.sha256).hexdigest()

    def is_ours(self, cookie: str, token: str) -> bool:
        """Return whether a form brought along what belongs to its cookie."""
        return hmac.compare_digest(self.csrf_of(cookie).encode(), token.encode("utf-8", "replace"))

    def wait_s(self, address: str) -> float:
        """Return how long this address has to wait until it may try to log in."""
        with self._lock:
            _, until_s = self._failures.get(address, (0, 0.0))
            return max(0.0, until_s - self._clock())

    def failed(self, address: str) -> None:
        """Count a wrong password; from the sixth on each wait is twice as long."""
        with self._lock:
            count = self._failures.pop(address, (0, 0.0))[0] + 1
            beyond = count - FREE_TRIES
            wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(beyond, 20)) if beyond >= 0 else 0.0
            self._failures[address] = (count, self._clock() + wait_s)
            while len(self._failures) > ADDRESSES_LIMIT:
                self._failures.popitem(last=False)

    def succeeded(self, address: str) -> None:
        """Forget the wrong passwords of an address."""
        with self._lock:
            self._failures.pop(address, None)


def new_cookie() -> str:
    """Return a value that nobody guesses."""
    return secrets.token_urlsafe(32)


def _key(cookie: str) -> str:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).hexdigest()
