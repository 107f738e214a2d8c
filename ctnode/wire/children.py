"""The receiver children as the acceptor sees them: started, fed with connections, counted, started again."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ctnode.config import Config
from ctnode.wire import channel
from ctnode.wire.certificates import Material
from ctnode.wire.channel import Message
from ctnode.wire.places import Place
from ctnode.words import Unavailable

RESTART_WAIT_S: Final = 1.0
_LAST_BREATH_S: Final = 1.0
# A channel of its own to the service manager is the role's, and the socket it handed over is the acceptor's.
_NOT_INHERITED: Final = ("NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a receiver child has to know; it reads no file of its own."""

    config: Config
    listening_address: str
    tls_listening_address: str = ""
    material: Material | None = None

    def as_text(self) -> str:
        """Return the settings as JSON."""
        return json.dumps(
            {
                "config": self.config.model_dump_json(),
                "listening_address": self.listening_address,
                "tls_listening_address": self.tls_listening_address,
                "material": self.material.as_json() if self.material is not None else None,
            }
        )

    @classmethod
    def read(cls, message: Message) -> Settings:
        """Take the settings out of a message.

        Raises
        ------
        Unavailable
            If there are none in it.
        """
        if not message.descriptors:
            raise Unavailable("the acceptor sent no settings")
        values = json.loads(channel.read_memory_file(message.descriptors[0]))
        material = values.pop("material")
        config = Config.model_validate_json(values.pop("config"))
        return cls(config, material=Material(**material) if material else None, **values)


@dataclass(frozen=True, slots=True)
class End:
    """A connection that is over: its place, whom it was that was rejected, whether an association was asked for."""

    place: int
    rejected: Mapping[str, str] | None = None
    has_asked: bool = True


class Child:
    """One receiver process and its channel."""

    def __init__(self, settings: Settings) -> None:
        # The numbers of the places whose connections it has, and what became of those that are over.
        self.places: set[int] = set()
        self.ended: list[End] = []
        self.is_ready = False
        self.counters: Mapping[str, Any] = {}
        # Why this child does not trust the storage any more.
        self.suspect = ""
        self.started_s = time.monotonic()
        self.end, theirs = channel.make_channel()
        environment = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
        command = [sys.executable, "-P", "-m", "ctnode.wire.receiver", "--control", str(theirs.fileno())]
        with theirs:
            self.process = subprocess.Popen(
                [*command, "--parent", str(os.getpid())], pass_fds=[theirs.fileno()], env=environment
            )
        # A child that does not read must not hold the acceptor up.
        self.end.setblocking(False)
        self.configure(settings)

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self.process.pid

    def configure(self, settings: Settings) -> None:
        """Send settings."""
        memory = channel.as_memory_file(settings.as_text())
        try:
            channel.send(self.end, "config", descriptors=(memory,))
        finally:
            os.close(memory)

    def give(self, connection: socket.socket, place: Place, *, is_tls: bool) -> bool:
        """Hand a connection over; False if the child does not take it."""
        taken = channel.send(
            self.end,
            "connection",
            descriptors=(connection.fileno(),),
            place=place.number,
            over_limit=place.over_limit,
            is_tls=is_tls,
        )
        if taken:
            self.places.add(place.number)
        return taken

    def end_process(self) -> None:
        """Wait for a process whose channel has ended; what does not end by itself is killed."""
        try:
            self.process.wait(_LAST_BREATH_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def take_messages(self) -> bool:
        """Read what the child reports; False if it has gone."""
        while True:
            try:
                message = channel.receive(self.end)
            except BlockingIOError:
                return True
            if message is None:
                return False
            message.close()
            if message.what == "ready":
                self.is_ready = True
            elif message.what == "suspect":
                self.suspect = str(message.fields["reason"])
            elif message.what == "ended":
                end = End(int(message.fields["place"]), message.fields["rejected"], message.fields["has_asked"])
                self.places.discard(end.place)
                self.ended.append(end)
            self.counters = message.fields.get("counters", self.counters)


class Totals:
    """Counters over all children, those that died included."""

    def __init__(self) -> None:
        self._past: list[Mapping[str, Any]] = []

    def bury(self, child: Child) -> None:
        """Keep the last counters of a child that ended."""
        self._past = [_sum([*self._past, child.counters])]

    def over(self, children: list[Child]) -> dict[str, Any]:
        """Return the sum."""
        return _sum([*self._past, *(child.counters for child in children)])


def _sum(parts: list[Mapping[str, Any]]) -> dict[str, Any]:
    instances: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    cut: Counter[str] = Counter()
    seconds: dict[str, list[float]] = {}
    for part in parts:
        for peer, spent in part.get("seconds", {}).items():
            known = seconds.get(peer, [0.0] * len(spent))
            seconds[peer] = [one + other for one, other in zip(known, spent, strict=True)]
        instances.update(part.get("instances", {}))
        ended.update(part.get("ended", {}))
        cut.update(part.get("cut", {}))
    return {
        "instances": dict(sorted(instances.items())),
        "ended": dict(sorted(ended.items())),
        "cut": dict(sorted(cut.items())),
        "bytes": sum(int(part.get("bytes", 0)) for part in parts),
        "seconds": seconds,
    }
