"""Sessions that begin valid and are then damaged, against the receive role as a process.

    python -m tests.fuzz_sessions --sessions 100000 --seed 1

Session ``n`` of a seed is always the same: ``--only n`` repeats one. After each: what was acknowledged lies in the
journal byte for byte, and nothing lies there that was not sent. At the end: no exception in the log, the same receiver
process, no thread, descriptor or file more than before, and a C-ECHO is answered.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ctnode.archive.header import read_meta
from ctnode.archive.spool import JOURNAL_NAME
from tests.pdu_writer import APPLICATION, GARBAGE_STARTS, command_elements, item, request, user_item, write_command
from tests.wire_peers import (
    ABORT,
    CT,
    EXPLICIT,
    IMPLICIT,
    P_DATA,
    RELEASE_RP,
    RELEASE_RQ,
    VERIFICATION,
    RawPeer,
    command_set,
    data_set,
    pdu,
    pdv,
    store_command,
    uid,
)
from tests.wire_roles import ReceiveRole, wait_until

FAULTS = ("association failed", "instance failed", "receiver died", "Traceback", "Exception", "did not end")
LENGTHS = (0, 1, 2, 5, 6, 7, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
WARM_UP = 300
# What the allocator of a process that is not growing may still take.
GROWTH_MB = 24


# ----------------------------------------------------------------------------------------------------- a valid session


@dataclass
class Session:
    """The PDUs of one session, and how it ends."""

    pdus: list[bytes]
    stores: int
    end: str
    is_valid: bool = True
    mutations: list[str] = field(default_factory=list)

    @property
    def sent(self) -> bytes:
        return b"".join(self.pdus)


def echo(context_id: int = 1, message_id: int = 1) -> bytes:
    values: dict[int, bytes | int] = {0x0002: VERIFICATION.encode(), 0x0100: 0x0030, 0x0110: message_id, 0x0800: 0x0101}
    return pdu(P_DATA, pdv(context_id, 3, command_set(values)))


def store(chance: random.Random, name: str, message_id: int) -> list[bytes]:
    content = data_set(name, pixels=chance.randbytes(chance.choice((0, 2, 100, 3000, 70_000))))
    size = chance.choice((50, 1000, 16_000, 100_000))
    pieces = [content[start : start + size] for start in range(0, len(content), size)][:40]
    if sum(map(len, pieces)) < len(content):
        pieces[-1] = content[size * (len(pieces) - 1) :]
    values = [pdv(3, 3, store_command(name.encode(), message_id=message_id))]
    values += [pdv(3, 2 if number == len(pieces) - 1 else 0, piece) for number, piece in enumerate(pieces)]
    if chance.random() < 0.2 and sum(map(len, values)) < 100_000:
        return [pdu(P_DATA, b"".join(values))]
    return [pdu(P_DATA, value) for value in values]


def foreign(chance: random.Random, message_id: int) -> list[bytes]:
    """Write a message of a service that was not negotiated, or that nobody asked for."""
    command_field = chance.choice((0x0010, 0x0020, 0x0021, 0x0FFF, 0x0100, 0x0110, 0x0120, 0x0130, 0x0140, 0x0150,
                                   0x8001, 0x8030, 0x8100, 0x8130))  # fmt: skip
    values: dict[int, bytes | int] = {
        0x0002: VERIFICATION.encode(), 0x0100: command_field, 0x0110: message_id, 0x0120: message_id, 0x0700: 0,
        0x0800: chance.choice((0x0101, 0x0000)), 0x0900: 0, 0x1000: b"1.2.3", 0x1002: 1, 0x1008: 1,
    }  # fmt: skip
    first = pdu(P_DATA, pdv(1, 3, command_set(values)))
    return [first, pdu(P_DATA, pdv(1, 2, data_set("1.2.3")))] if values[0x0800] == 0 else [first]


def make_session(chance: random.Random, number: int) -> Session:
    contexts = [(1, VERIFICATION, (IMPLICIT,)), (3, CT, (EXPLICIT,)), (5, CT, (IMPLICIT, EXPLICIT))]
    extra = [
        (7 + 2 * n, chance.choice((CT, "1.2.3.4", "1.2.840.10008.5.1.4.1.1.4")), (EXPLICIT,))
        for n in range(chance.choice((0, 0, 0, 3, 120)))
    ]
    encoded = [(n, a.encode(), [s.encode() for s in syntaxes]) for n, a, syntaxes in contexts + extra]
    negotiated = chance.choice(
        (
            b"",
            item(0x53, struct.pack(">HH", 1, 1)),
            item(0x54, struct.pack(">H", len(CT)) + CT.encode() + b"\1\0"),
            item(0x55, b"FUZZ_1"),
            item(0x56, struct.pack(">H", len(CT)) + CT.encode() + b"\2\0\0\0"),
            item(
                0x57, struct.pack(">H", len(CT)) + CT.encode() + struct.pack(">H", 17) + b"1.2.840.10008.4.2" + b"\0\0"
            ),
            item(0x58, b"\1\0\0\4user\0\0"),
        )
    )
    pdus = [request(encoded, calling=b"FUZZ", user=user_item(negotiated, limit=chance.choice((0, 64, 16384, 1 << 20))))]
    stores = 0
    is_valid = True
    for message_id in range(1, chance.randint(1, 4) + 1):
        kind = chance.random()
        if kind < 0.6:
            stores += 1
            pdus += store(chance, uid(number % 1_000_000, message_id), message_id)
        elif kind < 0.9:
            pdus.append(echo(1, message_id))
        else:
            is_valid = False
            pdus += foreign(chance, message_id)
    end = chance.choices(("release", "abort", "close", "reset"), (6, 2, 1, 1))[0]
    if end == "release":
        pdus.append(pdu(RELEASE_RQ, bytes(4)))
    elif end == "abort":
        pdus.append(pdu(ABORT, bytes(4)))
    return Session(pdus, stores, end, is_valid)


# ----------------------------------------------------------------------------------------------------------- mutations


def flip_bits(chance: random.Random, pdus: list[bytes]) -> None:
    index = chance.randrange(len(pdus))
    changed = bytearray(pdus[index])
    for _ in range(chance.choice((1, 1, 2, 8))):
        near = min(len(changed), chance.choice((6, 12, 40, 200, len(changed))))
        if near:
            changed[chance.randrange(near)] ^= 1 << chance.randrange(8)
    pdus[index] = bytes(changed)


def lie_about_the_pdu(chance: random.Random, pdus: list[bytes]) -> None:
    index = chance.randrange(len(pdus))
    content = pdus[index]
    length = chance.choice((*LENGTHS, len(content) - 7, len(content) - 5, 2 * len(content)))
    pdus[index] = content[:2] + struct.pack(">L", length & 0xFFFFFFFF) + content[6:]


def lie_inside(chance: random.Random, pdus: list[bytes]) -> None:
    """Change two or four bytes that may be a length: of a PDV, an item, an element."""
    index = chance.randrange(len(pdus))
    content = bytearray(pdus[index])
    size = chance.choice((2, 4))
    if len(content) < 12 + size:
        return
    offset = 6 if size == 4 and chance.random() < 0.5 else chance.randrange(6, min(len(content) - size, 300))
    value = chance.choice(LENGTHS) & (0xFFFF if size == 2 else 0xFFFFFFFF)
    content[offset : offset + size] = value.to_bytes(size, chance.choice(("big", "little")))
    pdus[index] = bytes(content)


def swap(chance: random.Random, pdus: list[bytes]) -> None:
    first, second = chance.randrange(len(pdus)), chance.randrange(len(pdus))
    pdus[first], pdus[second] = pdus[second], pdus[first]


def duplicate(chance: random.Random, pdus: list[bytes]) -> None:
    index = chance.randrange(len(pdus))
    pdus.insert(chance.randint(index, len(pdus)), pdus[index])


def leave_out(chance: random.Random, pdus: list[bytes]) -> None:
    if len(pdus) > 1:
        del pdus[chance.randrange(len(pdus))]


def truncate(chance: random.Random, pdus: list[bytes]) -> None:
    index = chance.randrange(len(pdus))
    content = pdus[index][: chance.randrange(len(pdus[index]) + 1)]
    if len(content) >= 6 and chance.random() < 0.5:
        content = content[:2] + struct.pack(">L", len(content) - 6) + content[6:]
    pdus[index] = content


def insert(chance: random.Random, pdus: list[bytes]) -> None:
    other = chance.choice(
        (
            lambda: pdu(chance.randrange(256), chance.randbytes(chance.randrange(100))),
            lambda: pdu(chance.randrange(1, 8), chance.randbytes(chance.choice((0, 4, 68, 200)))),
            lambda: pdu(ABORT, bytes([0, 0, chance.randrange(3), chance.randrange(8)])),
            lambda: pdu(RELEASE_RQ, bytes(4)),
            lambda: pdu(RELEASE_RP, bytes(4)),
            lambda: request(),
            lambda: request(application=item(0x10, APPLICATION) * chance.randrange(3)),
            lambda: pdu(P_DATA, pdv(chance.randrange(256), chance.randrange(256), chance.randbytes(20))),
            lambda: pdu(P_DATA, pdv(3, 0, b"") * chance.randrange(1, 50)),
            lambda: chance.choice(GARBAGE_STARTS),
            lambda: chance.randbytes(chance.randrange(1, 2000)),
        )
    )
    pdus.insert(chance.randint(0, len(pdus)), other())


def damage_a_command(chance: random.Random, pdus: list[bytes]) -> None:
    """Change the elements of a command set and keep all lengths around it true."""
    found = [n for n, content in enumerate(pdus) if len(content) > 12 and content[0] == P_DATA and content[11] & 1]
    if not found:
        return
    index = chance.choice(found)
    (length,) = struct.unpack_from(">L", pdus[index], 6)
    if length < 2 or length > len(pdus[index]) - 10:
        return
    context_id, control = pdus[index][10], pdus[index][11]
    elements = command_elements(pdus[index][12 : 10 + length])
    if not elements:
        return
    at = chance.randrange(len(elements))
    number, value = elements[at]
    kind = chance.randrange(7)
    if kind == 0:
        del elements[at]
    elif kind == 1:
        elements.insert(at, elements[at])
    elif kind == 2:
        elements[at] = (number, chance.randbytes(len(value)))
    elif kind == 3:
        elements[at] = (number, chance.choice((b"", b"\0", b"..", b"../../x", b"1" * 65, b"1.2\0.3", b"\xff" * 70_000)))
    elif kind == 4:
        elements[at] = (chance.choice((0x0002, 0x0100, 0x0110, 0x0800, 0x1000, 0x1030, 0x1031, 0x5010)), value)
    elif kind == 5:
        elements.append((chance.randrange(0x10000), chance.randbytes(chance.randrange(30))))
    else:
        chance.shuffle(elements)
    rest = pdus[index][10 + length :]
    pdus[index] = pdu(P_DATA, pdv(context_id, control, write_command(elements)) + rest)


MUTATIONS: tuple[Callable[[random.Random, list[bytes]], None], ...] = (
    flip_bits, flip_bits, lie_about_the_pdu, lie_inside, lie_inside, swap, duplicate, leave_out, truncate, insert,
    damage_a_command, damage_a_command, damage_a_command,
)  # fmt: skip


def fuzzed_session(seed: int, number: int) -> Session:
    """Return session ``number``; about one in ten is left as it is."""
    chance = random.Random(f"{seed}:{number}")
    session = make_session(chance, number)
    for _ in range(chance.choices((0, 1, 2, 3), (1, 5, 3, 1))[0]):
        mutation = chance.choice(MUTATIONS)
        mutation(chance, session.pdus)
        session.mutations.append(mutation.__name__)
        session.is_valid = False
    return session


# ---------------------------------------------------------------------------------------------------------- the oracle


def data_sets(sent: bytes) -> set[str]:
    """Return the digests of all data sets that the sent bytes may be read as, without any rule about commands."""
    found: set[str] = set()
    position = 0
    content = bytearray()
    while position + 6 <= len(sent):
        kind, _, length = struct.unpack_from(">BBL", sent, position)
        body = sent[position + 6 : position + 6 + length]
        position += 6 + length
        offset = 0
        while kind == P_DATA and offset + 6 <= len(body):
            size, _context_id, control = struct.unpack_from(">LBB", body, offset)
            if size < 2:
                break
            fragment = body[offset + 6 : offset + 4 + size]
            offset += 4 + size
            if control & 1:
                content.clear()
                continue
            content += fragment
            if control & 2:
                found.add(hashlib.sha256(content).hexdigest())
                content.clear()
    return found


def acknowledged(answers: bytes) -> Counter[str]:
    """Return the SOP Instance UIDs of the C-STORE responses with 0000H, in however small PDUs they came."""
    found: Counter[str] = Counter()
    position = 0
    command = bytearray()
    while position + 12 <= len(answers):
        kind, _, length = struct.unpack_from(">BBL", answers, position)
        if kind == P_DATA:
            command += answers[position + 12 : position + 6 + length]
            if answers[position + 11] & 2:
                elements = dict(command_elements(command))
                if elements.get(0x0100) == b"\x01\x80" and elements.get(0x0900) == b"\0\0":
                    found[elements.get(0x1000, b"").rstrip(b"\0 ").decode("latin-1")] += 1
                command.clear()
        position += 6 + length
    return found


# ------------------------------------------------------------------------------------------------------------- the run


class Wrong(Exception):
    """A session that did what it may not."""


@dataclass
class Figures:
    """What the process holds."""

    threads: int
    descriptors: int
    resident_mb: float

    @classmethod
    def of(cls, pid: int) -> Figures:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return cls(int(status["Threads"]), len(os.listdir(f"/proc/{pid}/fd")), int(status["VmRSS"].split()[0]) / 1024)

    def growth_to(self, after: Figures) -> list[str]:
        """Return what there is more of afterwards than there may be."""
        return [
            f"{what} grew from {before:.0f} to {now:.0f}"
            for what, before, now, allowed in (
                ("threads", self.threads, after.threads, 0),
                ("descriptors", self.descriptors, after.descriptors, 0),
                ("megabytes", self.resident_mb, after.resident_mb, GROWTH_MB),
            )
            if now - before > allowed
        ]


class Run:
    """Many sessions against one role."""

    def __init__(self, folder: Path, seed: int, *, workers: int = 4) -> None:
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._workers = workers
        self._incoming = folder / "root" / "incoming"
        self._role = ReceiveRole(folder, **{"log.level": "warning"})
        self._port = self._role.wait_ready()
        (self._child,) = wait_until(lambda: self._role.counters().get("receivers"), "the receiver")
        self._next = 0
        # By address and port of the peer: the journal tells whose it is.
        self._owner: dict[Path, str] = {}
        self._expected: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def sessions(self, count: int, *, until_s: float = 0.0) -> None:
        """Run ``count`` sessions, and more until the time on the monotonic clock has come."""
        last = self._next + count
        threads = [threading.Thread(target=self._work, args=(last, until_s)) for _ in range(self._workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def one(self, number: int) -> None:
        """Run one session."""
        session = fuzzed_session(self.seed, number)
        for name in session.mutations or ["none"]:
            self.counts[name] += 1
        # Each from an address of its own: who knocks too often without asking for anything is made to wait.
        source = f"127.{1 + number // 62500 % 250}.{number // 250 % 250}.{1 + number % 250}"
        with RawPeer(self._port, source=source) as peer:
            own_address = "{}:{}".format(*peer.socket.getsockname())
            with self._lock:
                # A port comes back: the journal of a session that was reset may still be there under it.
                self._expected.setdefault(own_address, set()).update(data_sets(session.sent))
            answers = self._talk(peer, session, number)
            if answers is None:
                return
        acks = acknowledged(answers)
        self.counts["acknowledged"] += acks.total()
        kept = self._settle(own_address)
        if missing := acks - kept:
            raise Wrong(f"acknowledged but not kept: {sorted(missing)}")
        if session.is_valid and acks.total() != session.stores:
            raise Wrong(f"{acks.total()} of {session.stores} stores acknowledged in a valid session")

    def _talk(self, peer: RawPeer, session: Session, number: int) -> bytes | None:
        chance = random.Random(number)
        sent = session.sent
        try:
            if chance.random() < 0.1:
                for start in range(0, min(len(sent), 400), 40):
                    peer.send(sent[start : start + 40])
                sent = sent[400:]
            peer.send(sent)
            if session.end == "reset":
                peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return None
            peer.socket.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise Wrong("the node does not read") from error
        answers = bytearray()
        try:
            while piece := peer.socket.recv(1 << 16):
                answers += piece
        except ConnectionResetError:
            pass
        except TimeoutError:
            raise Wrong("the node neither answers nor closes") from None
        return bytes(answers)

    def _settle(self, own_address: str) -> Counter[str]:
        """Check the journals of a session that is over, and remove them."""
        kept: Counter[str] = Counter()
        for folder in self._folders_of(own_address):
            # A peer that is gone is not told when its journal is written: there is nothing to wait for but that.
            wait_until(lambda folder=folder: '"what": "closed"' in (folder / JOURNAL_NAME).read_text(), "the journal")
            with self._lock:
                kept += self._check(folder, self._expected[own_address])
                shutil.rmtree(folder)
                del self._owner[folder]
        return kept

    def _folders_of(self, own_address: str) -> list[Path]:
        with self._lock:
            for folder in set(self._incoming.iterdir()) - self._owner.keys():
                try:
                    first = json.loads((folder / JOURNAL_NAME).read_text().partition("\n")[0])
                except (OSError, ValueError):
                    # Of a session that is just beginning.
                    continue
                self._owner[folder] = first["peer_address"]
            return [folder for folder, owner in self._owner.items() if owner == own_address]

    def _check(self, folder: Path, expected: set[str]) -> Counter[str]:
        kept: Counter[str] = Counter()
        for path in folder.iterdir():
            if path.suffix == ".dcm":
                content = path.read_bytes()
                meta = read_meta(content)
                if meta is None or hashlib.sha256(content[meta.dataset_start :]).hexdigest() not in expected:
                    raise Wrong(f"{path.name} was never sent")
                kept[meta.sop_instance] += 1
            elif path.name != JOURNAL_NAME:
                raise Wrong(f"{path.name} is left behind")
        return kept

    def _work(self, last: int, until_s: float) -> None:
        while not self.wrong:
            with self._lock:
                if self._next >= last and time.monotonic() >= until_s:
                    return
                number = self._next
                self._next += 1
            try:
                self.one(number)
            except (Wrong, AssertionError, OSError, struct.error) as error:
                self.wrong.append(f"session {number} of seed {self.seed}: {type(error).__name__} {error}")

    def figures(self) -> Figures:
        """Return what the receiver holds once no association is open."""

        def is_idle() -> bool:
            return bool(self._role.counters()["associations"]["open"] == 0)

        wait_until(is_idle, "the end of all sessions")
        return Figures.of(self._child)

    def finish(self) -> None:
        """Check that the node is as alive as before, and end it."""
        for folder in self._incoming.iterdir():
            # Of sessions that were reset: nobody was told anything.
            with self._lock:
                for path in folder.glob("*.part"):
                    self.wrong.append(f"{path.name} is left behind")
        with RawPeer(self._port) as peer:
            peer.associate()
            peer.send(echo())
            if peer.answer().status != 0:
                self.wrong.append("no echo")
            peer.release()
        if self._role.counters()["receivers"] != [self._child]:
            self.wrong.append("the receiver was replaced")
        self._role.signal(signal.SIGTERM)
        if self._role.wait_exit() != 0:
            self.wrong.append("the role did not end well")
        text = self._role.log.read_text()
        self.wrong += [line[:300] for line in text.splitlines() if any(fault in line for fault in FAULTS)][:20]

    def close(self) -> None:
        """End whatever is left."""
        self._role.end()


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--only", type=int, help="the number of one session")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        run = Run(Path(name), options.seed, workers=options.workers)
        try:
            if options.only is not None:
                session = fuzzed_session(options.seed, options.only)
                print(session.end, session.mutations, [content[:40].hex() for content in session.pdus])
                run.one(options.only)
            else:
                run.sessions(min(WARM_UP, options.sessions))
                before = run.figures()
                began_s = time.monotonic()
                run.sessions(options.sessions - WARM_UP)
                seconds = time.monotonic() - began_s
                after = run.figures()
                print(f"{options.sessions} sessions of seed {options.seed}, {options.sessions / seconds:.0f}/s")
                print(f"before: {before}\nafter:  {after}")
                print(dict(run.counts.most_common()))
                run.wrong += before.growth_to(after)
            run.finish()
        finally:
            run.close()
    for line in run.wrong:
        print(line)
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
