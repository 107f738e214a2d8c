"""A real node with routes and an external destination: each series goes where it belongs, and nobody's name leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from tests.harness import LOOPBACK, Node, small_series, storescp, storescu

pytestmark = pytest.mark.acceptance

CANARY = "KANARIENVOGEL"


def named(_index: int, dataset: Dataset) -> None:
    """Write a patient into an image, also where only a sequence or a vendor would."""
    dataset.PatientName = CANARY
    dataset.PatientID = CANARY
    item = Dataset()
    item.RequestedProcedureDescription = CANARY
    dataset.RequestAttributesSequence = [item]
    dataset.private_block(0x0019, "VENDOR", create=True).add_new(1, "LO", CANARY)


def test_routes_send_what_fits_keep_what_does_not_and_let_no_name_out(tmp_path: Path) -> None:
    (tmp_path / "trial.key").write_bytes(bytes(range(32)))
    target = {"name": "trial", "ae_title": "TRIAL", "host": LOOPBACK, "external": True, "deidentify": "trial"}
    routes = [
        {
            "name": "trial", "when": 'calling_ae == "CT1" and Rows <= 64 and instances == 12', "run": "none",
            "send": ["originals"], "to": ["trial"], "priority": "high",
        },
    ]  # fmt: skip
    wanted, sent = small_series(tmp_path / "wanted", 1, edit=named)
    other, unsent = small_series(tmp_path / "other", 2, edit=named)
    with (
        storescp(tmp_path / "arrived", title="TRIAL") as port,
        Node(
            tmp_path / "node",
            targets=[{**target, "port": port}],
            deidentification=[{"name": "trial", "project": "TRIAL", "key_file": tmp_path / "trial.key"}],
            routes=routes,
        ) as node,
    ):
        assert storescu(node.port, sent, calling="CT1").returncode == 0
        assert storescu(node.port, unsent, calling="CT2").returncode == 0
        node.wait_for(lambda: len(list((tmp_path / "arrived").iterdir())) == len(sent), "originals at the destination")
        node.wait_for(lambda: {state for _, state, *_ in node.query(
            "SELECT id, state FROM deliveries")} == {"SENT"}, "deliveries SENT")  # fmt: skip
        node.wait_series(wanted, state="KEPT")
        node.wait_series(other, state="KEPT")
        kept = node.series(other)
        assert kept is not None
        assert kept.reason.startswith("no route: trial does not fire")
        told = node.json("route", "test", other, "--json", expect=1)
        assert told[0]["decided_by"] == ['calling_ae == "CT1"']
        node.wait_for(lambda: not list((node.root / "run").glob("outgoing-*")), "no copy left for the outside")
        node.check_promises()
    originals = {dcmread(file).SOPInstanceUID for file in sent}
    arrived = [dcmread(file) for file in (tmp_path / "arrived").iterdir()]
    assert len({image.SOPInstanceUID for image in arrived}) == len(sent)
    assert not originals & {image.SOPInstanceUID for image in arrived}
    assert {image.PatientIdentityRemoved for image in arrived} == {"YES"}
    for file in (tmp_path / "arrived").iterdir():
        assert CANARY.encode() not in file.read_bytes()
