"""Orthanc beside the node: it is asked for what it holds, sends what is missing, and asks what the node vouches for."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from tests.acceptance.test_end_to_end import orthanc, rest
from tests.harness import LOOPBACK, Node, data_set_of, sha256, small_series, storescu, wait_until

pytestmark = pytest.mark.acceptance


@dataclass
class Both:
    node: Node
    dicom: int
    http: int
    hung: socket.socket


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    place = tmp_path_factory.mktemp("orthanc")
    with orthanc(place / "orthanc") as (dicom, http), socket.create_server((LOOPBACK, 0)) as hung:
        asked = {"host": LOOPBACK, "query_ae_title": "ORTHANC", "query_port": dicom, "query_timeout_s": 10.0}
        services = ["echo", "store", "commitment"]
        peers = [
            {"name": "getter", "ae_title": "GETTER", "active_check": "image", "retrieve": "get", **asked},
            {"name": "mover", "ae_title": "MOVER", "active_check": "image", "retrieve": "move", **asked},
            {"name": "counter", "ae_title": "COUNTER", "active_check": "series", "retrieve": "move", **asked},
            {"name": "hung", "ae_title": "HUNG", "active_check": "image", **asked, "query_port": hung.getsockname()[1],
             "query_timeout_s": 2.0},
            {"name": "orthanc", "ae_title": "ORTHANC", "host": LOOPBACK, "port": dicom, "services": services},
        ]  # fmt: skip
        with Node(place / "node", peers=peers, completion={"quiet_s": 3.0}) as node:
            put(http, "/modalities/ctnode", {"AET": "CTNODE", "Host": LOOPBACK, "Port": node.port})
            yield Both(node, dicom, http, hung)


def put(port: int, path: str, body: object) -> None:
    request = urllib.request.Request(f"http://{LOOPBACK}:{port}{path}", data=json.dumps(body).encode(), method="PUT")
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()


def told(node: Node, series: str) -> list[tuple[Any, ...]]:
    return node.query("SELECT kind, count, failed FROM evidence WHERE series = ? ORDER BY kind", series)


def asked(node: Node, series: str) -> list[tuple[Any, ...]]:
    return node.query(
        "SELECT jobs.state, jobs.message FROM jobs JOIN revisions ON revisions.id = jobs.revision_id"
        " JOIN series ON series.id = revisions.series_id WHERE jobs.kind = 'ask' AND series.uid = ? ORDER BY jobs.id",
        series,
    )


def test_what_the_peer_holds_and_did_not_send_is_fetched(both: Both, tmp_path: Path) -> None:
    """A peer that hangs is among them: it delays neither the others nor its own series."""
    hung, files = small_series(tmp_path, 604)
    assert storescu(both.node.port, files, calling="HUNG").returncode == 0
    sent = {}
    for number, peer in enumerate(("GETTER", "MOVER", "COUNTER"), start=601):
        sent[peer] = small_series(tmp_path, number)
        assert storescu(both.dicom, sent[peer][1]).returncode == 0
    for peer, (_, files) in sent.items():
        assert storescu(both.node.port, files[:8], calling=peer).returncode == 0
    for peer, (series, files) in sent.items():
        assert both.node.wait_series(series, "DONE", instances=12).instances == 12
        rows = both.node.query(
            "SELECT path FROM instances JOIN series ON series.id = series_id WHERE series.uid = ?", series
        )
        kept = {sha256(data_set_of(both.node.layout.store / path)) for (path,) in rows}
        # Orthanc writes anew what it sends; what was pushed to the node lies there bit for bit.
        assert len(kept) == 12 or peer == "COUNTER"
        assert {sha256(data_set_of(file)) for file in files[:8]} <= kept
        fetched = ("retrieve_final", 12 if peer == "COUNTER" else 4, 0)
        # A move that sent all there is proves it; who sent only what was missing is asked again.
        answer = (
            "move from counter: 12 sent, 0 failed, 0 with warnings, status 0000"
            if peer == "COUNTER"
            else f"{peer.lower()} holds 12 instances, 0 of them are not here"
        )
        both.node.wait_for(
            lambda series=series, answer=answer: asked(both.node, series)[-1] == ("DONE", answer),  # type: ignore[misc]
            "the last question has its answer",
        )
        assert told(both.node, series) == [("query_result", 12, 0), fetched]
        doors = both.node.query(
            "SELECT DISTINCT a.door FROM associations AS a JOIN association_series AS f ON f.association_id = a.id"
            " JOIN series ON series.id = f.series_id WHERE series.uid = ? ORDER BY 1",
            series,
        )
        assert doors == ([("get",), ("network",)] if peer == "GETTER" else [("network",)])
    both.node.wait_series(hung)
    both.node.wait_for(lambda: "no association" in str(asked(both.node, hung)), "the question has failed")


def test_orthanc_asks_what_the_node_vouches_for(both: Both, tmp_path: Path) -> None:
    _, files = small_series(tmp_path, 606)
    assert storescu(both.node.port, files, calling="ORTHANC").returncode == 0
    names = [(str(head.SOPClassUID), str(head.SOPInstanceUID)) for head in map(dcmread, files)]
    answer = rest(both.http, "/modalities/ctnode/storage-commitment", {"DicomInstances": names})

    def report() -> Any:
        found = rest(both.http, answer["Path"])
        return found if found["Status"] != "Pending" else None

    found = wait_until(report, "Orthanc has the report")
    assert found["Status"] == "Success"
    assert [one["SOPInstanceUID"] for one in found["Success"]] == [instance for _, instance in names]
    assert found["RemoteAET"] == "CTNODE"
