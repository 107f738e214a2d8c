"""A deliverer without its process: a root with results to deliver, a clock that tests turn, and destinations here."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pynetdicom import AE, evt
from pynetdicom.presentation import AllStoragePresentationContexts

from ctnode.archive import lanes, outbox, proofs, revisions
from ctnode.archive.outbox import Delivery, Parcel
from ctnode.config import Config
from ctnode.flow import delivery as delivery_module
from ctnode.flow.delivery import Deliverer
from ctnode.flow.recorder import Recorder
from tests.archive_root import Root, stack
from tests.harness import toml
from tests.wire_peers import EXPLICIT, VERIFICATION, data_set, uid

SC = "1.2.840.10008.5.1.4.1.1.7"


class Clock:
    """The time of the outbox."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.now = time.time()

    def time(self) -> float:
        return self.now

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (outbox, lanes, proofs, revisions, delivery_module):
            monkeypatch.setattr(module, "time", self)


class StillRole:
    """A role that nobody stops."""

    stopping = False
    reload_wanted = False

    def report(self, **counters: object) -> None:
        self.counters = counters


def write_object(
    path: Path, name: str, *, sop_class: str = SC, syntax: str = EXPLICIT, series: str = "", pixels: bytes = b"\1\2"
) -> None:
    """Write a Part 10 file."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = sop_class, name, syntax
    image = Dataset()
    image.file_meta = meta
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)
    with path.open("ab") as file:
        file.write(data_set(name, sop_class=sop_class, series=series or uid(1, 1), pixels=pixels))


class Office:
    """A root whose results wait to be delivered by a deliverer in this process."""

    def __init__(self, place: Path, targets: Sequence[Mapping[str, object]], **sections: Any) -> None:
        self.root = Root(place / "node")
        self.config = Config.model_validate(
            {
                "storage": {"root": str(place / "node")},
                "targets": [dict(target) for target in targets],
                "delivery": {"timeout_s": 20.0, "proof_wait_s": 5.0},
                **sections,
            }
        )
        self.recorder = Recorder(self.root.layout.database)
        self.recorder.__enter__()
        self.deliverer = Deliverer(
            self.config,
            self.root.layout,
            self.root.database,
            self.recorder,
            StillRole(),
            lambda: self.config,  # type: ignore[arg-type]
        )
        self._series = 0

    def close(self) -> None:
        self.recorder.__exit__(None, None, None)
        self.root.close()

    def reconfigure(self, targets: Sequence[Mapping[str, object]], **sections: Any) -> None:
        """Give the next process other targets, and other values of whole sections."""
        values = {**self.config.model_dump(exclude_none=True), "targets": [dict(target) for target in targets]}
        self.config = Config.model_validate({**values, **sections})

    def retry(self, *dead_of: str) -> None:
        """Let all that waits, that a killed process held, or that these targets refused be due now."""
        outbox.take_back(self.root.database)
        with self.root.database.immediate():
            for one in self.deliveries():
                if one.state == "RETRY" or (one.state == "DEAD" and one.target in dead_of):
                    outbox.requeue(self.root.database, one.id)
                lanes.hurry(self.root.database, one.lane)

    def series(self, count: int = 1) -> list[int]:
        """Bring so many series as far as the queue; return their revisions."""
        made = []
        for _ in range(count):
            self._series += 1
            made.append(self.root.queued(*stack(1, series=f"1.2.3.{self._series}")).id)
        return made

    def owe(self, revision: int, names: Sequence[str], *targets: str, **how: Any) -> None:
        """Publish one object a name and owe it to the targets."""
        parcels = []
        for name in names:
            relative = f"{revision}/{name}.dcm"
            write_object(self.root.layout.results / relative, name, **how)
            parcels += [Parcel(target, "report", relative, name) for target in targets]
        with self.root.database.immediate():
            outbox.post(self.root.database, revision, parcels)

    def work(self) -> None:
        """Let everything run that is due now, until nothing more does."""
        self.join()
        while lanes.due(self.root.database):
            self.deliverer.start_due()
            self.join()

    def join(self, *names: str) -> None:
        """Wait for the threads of these destinations, or of all."""
        for name in names or list(self.deliverer._threads):
            for thread in self.deliverer._threads[name]:
                thread.join(60)
        self.recorder.drain()

    def deliveries(self, target: str | None = None) -> tuple[Delivery, ...]:
        return outbox.listed(self.root.database, target=target, limit=100_000)

    def states(self, target: str | None = None) -> list[str]:
        return [str(one.state) for one in self.deliveries(target)]

    def lane(self, name: str) -> lanes.Lane:
        return lanes.get(self.root.database, name)


@contextmanager
def office(place: Path, *targets: Mapping[str, object], **sections: Any) -> Iterator[Office]:
    made = Office(place, targets, **sections)
    try:
        yield made
    finally:
        made.close()


class Archive:
    """An SCP that keeps what it took, and answers as ``answer`` says: a status, a data set, or ``abort``."""

    def __init__(self, port: int = 0, answer: Callable[[str], Any] = lambda name: 0, **options: Any) -> None:
        self.taken: list[str] = []
        self.answer = answer
        self.associations = 0
        self.most_at_once = 0
        self.on_store: Callable[[evt.Event, str], None] = lambda event, name: None
        self._open = 0
        self._lock = threading.Lock()
        entity = AE("THERE")
        for name, value in options.items():
            setattr(entity, name, value)
        if not entity.supported_contexts:
            entity.supported_contexts = AllStoragePresentationContexts
        entity.add_supported_context(VERIFICATION)
        self._server = entity.start_server(
            ("127.0.0.1", port),
            block=False,
            evt_handlers=[
                (evt.EVT_C_STORE, self._store), (evt.EVT_ESTABLISHED, self._begin), (evt.EVT_CONN_CLOSE, self._end)
            ],
        )  # fmt: skip
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def _begin(self, _event: evt.Event) -> None:
        with self._lock:
            self.associations += 1
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)

    def _end(self, _event: evt.Event) -> None:
        with self._lock:
            self._open -= 1

    def _store(self, event: evt.Event) -> Any:
        name = str(event.request.AffectedSOPInstanceUID)
        self.on_store(event, name)
        answer = self.answer(name)
        if answer == "abort":
            event.assoc.abort()
            return 0
        if answer == "lose":
            with self._lock:
                self.taken.append(name)
            event.assoc.abort()
            return 0
        if answer == 0:
            with self._lock:
                self.taken.append(name)
        return answer


def target(name: str, port: int, **more: object) -> dict[str, object]:
    return {"name": name, "ae_title": "THERE", "host": "127.0.0.1", "port": port, **more}


class DeliverProcess:
    """The ``deliver`` role as a real process on a root that the test fills."""

    def __init__(self, node: Office, place: Path, **environment: str) -> None:
        file = place / "config.toml"
        file.write_text(
            toml(node.config.model_dump(include={"storage", "delivery", "peers", "targets"}, exclude_none=True))
        )
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CTNODE_")}
        self._log = (place / "deliver.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ctnode", "--config", str(file), "deliver"],
            env={**inherited, **environment},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    def __enter__(self) -> DeliverProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Kill it, or wait for what killed it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(60)
        self._log.close()

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until the index says so."""
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain: {what}"
            time.sleep(0.03)
