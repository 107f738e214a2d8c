"""How objects get to one destination, whatever its kind, and how it is asked what it has."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ctnode.archive.elements import ShortBuffer
from ctnode.archive.header import read_meta, read_uids
from ctnode.archive.lanes import AT
from ctnode.config import Config, Peer, Target
from ctnode.wire import arrival, folder
from ctnode.wire.arrival import CommitmentReport, Reference
from ctnode.wire.requestor import Fault
from ctnode.wire.sender import Destination, EchoResult, Outcome, SendResult, echo, send
from ctnode.wire.stow import Service, WebFault
from ctnode.words import BadInstance

_HEAD_BYTES: Final = 1 << 16


class Unproved(Exception):
    """The destination could not be asked what it has; says why."""


@dataclass(frozen=True, slots=True)
class Named:
    """What identifies one object to the one who has it."""

    sop_class: str
    sop_instance: str
    study: str
    series: str


def named(path: Path) -> Named | None:
    """Return the names of an object, or None where the file cannot be read any more."""
    try:
        with path.open("rb", buffering=0) as file:
            head = file.read(_HEAD_BYTES)
            meta = read_meta(head)
            if meta is None:
                return None
            try:
                uids = read_uids(head[meta.dataset_start :], meta.transfer_syntax, whole=len(head) < _HEAD_BYTES)
            except ShortBuffer:
                file.seek(meta.dataset_start)
                uids = read_uids(file.readall(), meta.transfer_syntax, whole=True)
    except (OSError, BadInstance):
        return None
    return Named(uids.sop_class, uids.sop_instance, uids.study, uids.series)


@dataclass(frozen=True, slots=True)
class Carrier:
    """The way to one destination."""

    target: Target
    destination: Destination | None
    calling_ae: str
    timeout_s: float

    def send(self, files: Mapping[Path, str]) -> Generator[SendResult, None, None]:
        """Send files; a folder gets each under its relative name."""
        paths = list(files)
        if self.target.kind == "folder":
            yield from folder.put(Path(self.target.path), list(files.items()))
        elif self.target.kind == "dicomweb":
            with Service(self.target, self.timeout_s) as service:
                yield from service.store(paths)
        elif self.destination is None:
            for path in paths:
                yield SendResult(path, Outcome.DEAD, None, "its sender is no [[peers]] entry with a host and a port")
        else:
            yield from send(self.destination, self.calling_ae, paths, self.timeout_s)

    def held(self, objects: Iterable[Named]) -> frozenset[str]:
        """Return the SOP Instance UIDs of those objects that the destination says it has.

        Raises
        ------
        Unproved
            If it cannot be asked.
        """
        by_series: dict[tuple[str, str], list[str]] = {}
        for one in objects:
            by_series.setdefault((one.study, one.series), []).append(one.sop_instance)
        try:
            if self.target.kind == "dicomweb":
                with Service(self.target, self.timeout_s) as service:
                    return frozenset(
                        uid for (study, series), uids in by_series.items() for uid in service.held(study, series, uids)
                    )
            if self.destination is not None:
                return arrival.find(self.destination, self.calling_ae, by_series, self.timeout_s)
        except (Fault, WebFault) as fault:
            raise Unproved(fault.why) from None
        raise Unproved("there is nobody to ask")

    def commitment(self, transaction_uid: str, objects: Sequence[Named], wait_s: float) -> CommitmentReport | None:
        """Ask for storage commitment; None where the answer is still to come.

        Raises
        ------
        Unproved
            If it cannot be asked for.
        """
        if self.destination is None:
            raise Unproved("there is nobody to ask")
        references = [Reference(one.sop_class, one.sop_instance) for one in objects]
        try:
            return arrival.commitment(
                self.destination, self.calling_ae, transaction_uid, references, self.timeout_s, wait_s
            )
        except Fault as fault:
            raise Unproved(fault.why) from None

    def ping(self) -> EchoResult:
        """Ask the destination whether it is there."""
        started_s = time.monotonic()
        if self.target.kind == "folder":
            is_there = Path(self.target.path).is_dir()
            return EchoResult(is_there, time.monotonic() - started_s, "" if is_there else "the folder is not there")
        if self.target.kind == "dicomweb":
            try:
                with Service(self.target, self.timeout_s) as service:
                    service.ping()
                    seconds = time.monotonic() - started_s
                    return EchoResult(ok=True, seconds=seconds, detail="", accepted=("QIDO-RS",), tls=service.tls)
            except WebFault as fault:
                return EchoResult(ok=False, seconds=time.monotonic() - started_s, detail=fault.why)
        if self.destination is None:
            return EchoResult(ok=False, seconds=0.0, detail="no peer is named: it depends on the series")
        return echo(self.destination, self.calling_ae, self.timeout_s)


def carrier_of(config: Config, lane: str) -> Carrier | None:
    """Return the way to a destination by the name of its lane; None where the configuration has no such target."""
    name, _, peer_name = lane.partition(AT)
    target = next((target for target in config.targets if target.name == name), None)
    if target is None:
        return None
    destination = None
    if target.kind == "dicom":
        destination = Destination.of(target)
    elif target.kind == "sender":
        peer = next((peer for peer in config.peers if peer.name == peer_name), None)
        destination = _of_peer(peer, target) if peer is not None else None
    return Carrier(target, destination, config.node.ae_title, config.delivery.timeout_s)


def is_callable(peer: Peer) -> bool:
    """Return whether a peer can be called: it has a port, and its host is one and not a network."""
    return peer.port is not None and "/" not in peer.host


def _of_peer(peer: Peer, target: Target) -> Destination | None:
    if not is_callable(peer):
        return None
    assert peer.port is not None
    tls = target if target.tls else None
    return Destination(f"{target.name}{AT}{peer.name}", peer.ae_title, peer.host, peer.port, tls, target.transcode)
