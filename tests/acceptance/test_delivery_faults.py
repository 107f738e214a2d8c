"""A table of faults, each with the state it ends in, played by real destinations to one real deliverer at one time."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE

from tests.acceptance.test_end_to_end import orthanc, rest
from tests.acceptance.test_full_disk import small_disk
from tests.certificates import Authority
from tests.delivery_root import Archive, DeliverProcess, Office, office, target
from tests.harness import end, free_port, tool, tool_environment
from tests.scripted_scp import loses_answers_of, rejects_for_now, served
from tests.wire_peers import CT, uid

pytestmark = pytest.mark.acceptance

TIMEOUT_S = 2.0
PAGE = Path(__file__).parents[2] / "docs" / "delivery.md"


@dataclass(frozen=True)
class Fault:
    """One row: what the destination does, what its deliveries show meanwhile, and where they end when it is over."""

    name: str
    does: str
    meanwhile: str
    reason: str
    end: str = "all SENT"
    owed: int = 2

    def row(self) -> str:
        """Return its line on the page."""
        return f"| {self.does} | {self.meanwhile} | {self.reason} | {self.end} |"


FAULTS = (
    Fault("gone", "nobody listens", "1 RETRY, 1 PENDING", "no connection: connection refused"),
    Fault("nowhere", "its name does not resolve", "1 RETRY, 1 PENDING", "the host is not known"),
    Fault("expired", "its certificate has expired", "1 RETRY, 1 PENDING", "no connection: certificate has expired"),
    Fault("mute", "it hangs in the TLS handshake", "1 RETRY, 1 PENDING", "no connection: no answer"),
    Fault("silent", "it hangs in the negotiation", "1 RETRY, 1 PENDING", "no answer to the association request"),
    Fault("refuses", "it rejects every association", "1 RETRY, 1 PENDING",
          "association rejected permanently: no reason given"),
    Fault("later", "it rejects for now", "1 RETRY, 1 PENDING", "association rejected for now: local limit exceeded"),
    Fault("slow", "it hangs after the data", "2 RETRY", "no answer"),
    Fault("aborts", "it aborts in the middle of the data", "2 RETRY", "association aborted"),
    Fault("loses", "it stores and aborts before it answers", "2 RETRY", "association aborted"),
    Fault("forgets", "it stores, and the network loses its answer", "2 RETRY", "the connection ended"),
    Fault("full", "it answers A700 for an hour", "3 RETRY, 2 PENDING", "A700H", owed=5),
    Fault("narrow", "it does not take one of two SOP classes", "1 DEAD, 1 SENT", "SOP class not accepted",
          "1 DEAD, 1 SENT"),
    Fault("picky", "it refuses 3 of 100 objects", "3 DEAD, 97 SENT", "C000H",
          "3 DEAD, 97 SENT; all SENT after `ctnode deliveries retry`", owed=100),
    Fault("unmounted", "its folder is not mounted", "1 RETRY, 1 PENDING", "the folder is not there"),
)  # fmt: skip
# Those that come back as Orthanc, which keeps each SOP instance once.
RETURN = ("gone", "nowhere", "expired", "mute", "silent", "refuses", "later", "slow", "aborts", "loses", "forgets")
ORDER = ("DEAD", "RETRY", "SENDING", "PENDING", "SENT")


def test_the_page_has_the_table() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    head = lines.index("| what happens | meanwhile | reason | in the end |")
    shown = lines[head + 2 : lines.index("", head)]
    assert shown == [fault.row() for fault in FAULTS]


def names(fault: Fault) -> list[str]:
    return [uid(20 + FAULTS.index(fault), number + 1) for number in range(fault.owed)]


def storescp(stack: ExitStack, place: Path, *options: str, tls: tuple[Authority, Any] | None = None) -> int:
    """Run DCMTK's storescp with one of its faults and return its port."""
    place.mkdir()
    port = free_port()
    secured = ["+tls", str(tls[1].key), str(tls[1].certificate), "-ic"] if tls else []
    process = subprocess.Popen(
        [tool("storescp"), *options, *secured, "-od", str(place), "-aet", "THERE", str(port)],
        env=tool_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    stack.callback(end, process)
    return port


def shown(node: Office, fault: Fault) -> tuple[str, str]:
    """Return what the deliveries of a destination show, as the table has it."""
    owed = node.deliveries(fault.name)
    states = Counter(str(one.state) for one in owed)
    first = next((one for one in owed if one.state in {"RETRY", "DEAD"}), owed[0])
    reason = first.comment or ("" if first.status is None else f"{first.status:04X}H")
    return ", ".join(f"{states[state]} {state}" for state in ORDER if states[state]), reason


def is_settled(node: Office) -> bool:
    """Return whether each destination has shown its fault to all whom it shows it to."""
    return all(shown(node, fault)[0] == fault.meanwhile for fault in FAULTS)


def test_every_fault_ends_in_the_state_that_the_table_says(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    hanging = threading.Event()
    fault_of = {fault.name: fault for fault in FAULTS}
    refused = set(names(fault_of["picky"])[7::40])
    only_ct = AE("X")
    only_ct.add_supported_context(CT)
    with ExitStack() as stack:
        archive_port, archive_http = stack.enter_context(orthanc(tmp_path / "orthanc"))
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        full = stack.enter_context(Archive(answer=lambda name: 0xA700))
        slow = stack.enter_context(Archive())
        slow.on_store = lambda _event, _name: bool(hanging.wait(60))  # type: ignore[assignment,return-value]
        stack.callback(hanging.set)
        picky = stack.enter_context(Archive(answer=lambda name: 0xC000 if name in refused else 0))
        narrow = stack.enter_context(Archive(supported_contexts=only_ct.supported_contexts))
        secured: dict[str, object] = {"tls": True, "ca": str(authority.certificate), "host": "localhost"}
        expired = (authority, authority.issue("old", days=-2))
        targets = [
            target("gone", free_port()),
            target("nowhere", 104, host="nowhere.invalid"),
            target("expired", storescp(stack, tmp_path / "d", tls=expired), **secured),
            target("mute", silent, **secured),
            target("silent", silent),
            target("refuses", storescp(stack, tmp_path / "a", "--refuse")),
            target("later", stack.enter_context(served(rejects_for_now))),
            target("slow", slow.port),
            target("aborts", storescp(stack, tmp_path / "b", "--abort-during")),
            target("loses", storescp(stack, tmp_path / "c", "--abort-after")),
            target("forgets", stack.enter_context(served(loses_answers_of(archive_port)))),
            target("full", full.port),
            target("narrow", narrow.port),
            target("picky", picky.port),
            {"name": "unmounted", "kind": "folder", "path": str(tmp_path / "unmounted")},
        ]
        assert [each["name"] for each in targets] == list(fault_of)
        settings = {"timeout_s": TIMEOUT_S, "first_retry_s": 30.0}
        node = stack.enter_context(office(tmp_path / "office", *targets, delivery=settings))
        for fault, revision in zip(FAULTS, node.series(len(FAULTS)), strict=True):
            if fault.name == "narrow":
                node.owe(revision, names(fault)[:1], fault.name)
                node.owe(revision, names(fault)[1:], fault.name, sop_class=CT)
            else:
                node.owe(revision, names(fault), fault.name)
        process = stack.enter_context(DeliverProcess(node, tmp_path))
        process.wait_for(lambda: is_settled(node), "each destination has shown its fault")
        assert {fault.name: shown(node, fault) for fault in FAULTS} == {
            fault.name: (fault.meanwhile, fault.reason) for fault in FAULTS
        }
        # What may have arrived is known to, and nothing else is.
        went_out = {fault.name for fault in FAULTS if {one.transfers for one in node.deliveries(fault.name)} == {1}}
        assert went_out >= {"slow", "loses", "forgets"}
        assert not went_out & {"gone", "nowhere", "expired", "mute", "silent", "refuses", "later", "full", "unmounted"}
        assert {node.lane(name).failures for name in ("gone", "mute", "silent", "refuses", "later")} == {1}
        process.kill()

        # All of them come back; the full one goes on refusing first, as often as in an hour.
        hanging.set()
        refusals = iter(range(12))
        full.answer = lambda name: 0 if next(refusals, None) is None else 0xA700
        (tmp_path / "unmounted").mkdir()
        healed = [
            {**each, "port": archive_port, "tls": False, "host": "127.0.0.1"} if each["name"] in RETURN else each
            for each in targets
        ]
        node.reconfigure(healed, delivery={"timeout_s": 20.0, "first_retry_s": 0.01, "max_retry_s": 0.1})
        node.retry()
        process = stack.enter_context(DeliverProcess(node, tmp_path))
        process.wait_for(lambda: set(node.states()) == {"SENT", "DEAD"}, "all is delivered")
        ended = {fault.name: shown(node, fault)[0] for fault in FAULTS}
        wanted = {fault.name: fault.end.partition(";")[0].replace("all", str(fault.owed)) for fault in FAULTS}
        assert ended == wanted
        assert next(refusals, None) is None
        picky.answer = lambda name: 0
        node.retry("picky")
        process.wait_for(lambda: set(node.states("picky")) == {"SENT"}, "the operator's retry")

        # Each object once: in the archive, where the lost answers had left it already, and on every other shelf.
        tags = rest(archive_http, "/instances?expand")
        kept = sorted(one["MainDicomTags"]["SOPInstanceUID"] for one in tags)
        assert kept == sorted(name for fault in FAULTS if fault.name in RETURN for name in names(fault))
        assert sorted(picky.taken) == sorted(names(fault_of["picky"]))
        assert sorted(full.taken) == sorted(names(fault_of["full"]))
        assert narrow.taken == names(fault_of["narrow"])[1:]
        on_the_shelf = sorted(file.stem for file in (tmp_path / "unmounted").rglob("*.dcm"))
        assert on_the_shelf == sorted(names(fault_of["unmounted"]))
        again = {one.target for one in node.deliveries() if one.comment.startswith("sent again")}
        assert {"loses", "forgets", "slow"} <= again <= {"loses", "forgets", "slow", "aborts"}


def test_a_disk_that_is_full_here_repeats_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fills while the destination answers: what was taken cannot be written down, and waits for room to be."""
    # A write-ahead log may have room of its own from before; a journal needs some for every commit.
    journal = {"CTNODE_TEST_JOURNAL": "truncate"}
    monkeypatch.setenv("CTNODE_TEST_JOURNAL", journal["CTNODE_TEST_JOURNAL"])
    with small_disk("tmpfs", tmp_path) as disk, Archive() as archive, ExitStack() as stack:
        node = stack.enter_context(office(disk.mount, target("pacs", archive.port)))
        owed = [uid(9, number + 1) for number in range(60)]
        node.owe(node.series()[0], owed, "pacs")
        filled = threading.Event()

        def fill(_event: object, name: str) -> None:
            if name == owed[4]:
                disk.fill()
                filled.set()

        archive.on_store = fill  # type: ignore[assignment]
        process = stack.enter_context(DeliverProcess(node, tmp_path, **journal))
        log = tmp_path / "deliver.log"
        process.wait_for(filled.is_set, "the disk is full")
        process.wait_for(lambda: "cannot be written down now" in log.read_text(), "it says so")
        taken = len(archive.taken)
        assert node.states().count("SENT") <= taken
        assert "DEAD" not in node.states()
        assert process.process.poll() is None
        disk.free()
        process.wait_for(lambda: set(node.states()) == {"SENT"}, "all is written down")
        assert archive.taken == owed
        assert node.root.database.counters().get("deliveries.repeated", 0) == 0
