"""From a complete series to its job and its parcels: what routes decide, and that nothing is dropped silently."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ctnode.archive import jobs, outbox, revisions
from ctnode.archive.catalog import by_id
from ctnode.archive.values import read_values
from ctnode.cli import cli
from ctnode.config import Config, Route, Routing
from ctnode.config.when import Facts
from ctnode.flow.dispatch import Dispatcher, decide_finished, originals_for, results_for
from ctnode.flow.routes import Outcome, decide
from ctnode.words import RevisionState
from tests.archive_root import Root, element, stack

pytestmark = pytest.mark.integration

TARGETS = [{"name": name, "ae_title": "PACS", "host": "127.0.0.1", "port": 104} for name in ("pacs", "other")]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    root = Root(tmp_path / "node")
    yield root
    root.close()


def config(*routes: dict[str, object], match: str = "all") -> Config:
    return Config.model_validate({"targets": TARGETS, "routes": list(routes), "routing": {"match": match}})


def state(root: Root, series_id: int = 1) -> tuple[RevisionState, str]:
    series = by_id(root.database, series_id)
    return series.state, series.reason


def start(root: Root, settings: Config) -> None:
    Dispatcher(root.database, root.layout).start_complete(settings)


def owed(root: Root) -> list[tuple[object, ...]]:
    return root.rows("SELECT target, kind, count(*) FROM deliveries GROUP BY target, kind ORDER BY target")


def test_without_routes_every_ct_series_is_queued_and_others_are_kept(root: Root) -> None:
    root.hold(*stack(2))
    root.hold(*stack(2, series="1.2.3.2", sop_class="1.2.840.10008.5.1.4.1.1.4", modality="MR"))
    root.complete(1)
    root.complete(2)
    start(root, config())
    assert state(root)[0] is RevisionState.QUEUED
    assert state(root, 2) == (RevisionState.KEPT, "not CT: no CT image object, modality MR")


def test_what_no_route_takes_is_kept_and_says_so(root: Root) -> None:
    root.hold(*stack(2))
    root.complete()
    start(root, config({"name": "far", "when": 'calling_ae == "ELSEWHERE"'}))
    kept, reason = state(root)
    assert kept is RevisionState.KEPT
    assert reason == "no route: far does not fire"
    assert owed(root) == []


def test_the_sender_decides_and_originals_are_owed_once_for_each_target(root: Root) -> None:
    root.hold(*stack(3), calling="CT7")
    root.complete()
    sends = {"send": ["originals"], "run": "none"}
    routes = config(
        {
            "name": "a",
            "when": 'calling_ae == "CT7" and verdict == "LIKELY" and instances == 3',
            "to": ["pacs"],
            **sends,
        },
        {"name": "b", "when": "Rows == 4", "to": ["pacs", "other"], "priority": "high", **sends},
    )
    start(root, routes)
    assert state(root)[0] is RevisionState.KEPT
    assert owed(root) == [("other", "original", 3), ("pacs", "original", 3)]
    paths = [str(row[0]) for row in root.rows("SELECT path FROM deliveries")]
    assert all((root.layout.store / path).is_file() for path in paths)


def test_a_route_that_asks_for_results_runs_the_pipeline_and_is_decided_by_them(root: Root) -> None:
    root.hold(*stack(3))
    revision = root.complete()
    routes = config(
        {"name": "ill", "when": "both.laa950_pct > 10", "send": ["report", "originals"], "to": ["pacs"]},
        {"name": "rest", "when": ""},
    )
    start(root, routes)
    assert state(root)[0] is RevisionState.QUEUED
    assert owed(root) == []
    folder = root.layout.result_directory("1.2.3", "1.2.3.1", 1, 1)
    folder.mkdir(parents=True)
    (folder / "report.dcm").write_bytes(b"report")
    reports = [{"status": "EXACT", "lungs": "OK", "issues": []}]
    for share, fires in ((4.0, ["rest"]), (14.0, ["ill"])):
        (folder / "measurements.json").write_text(json.dumps({"both": {"laa950_pct": share}}))
        decision = decide_finished(root.database, root.layout, routes, revision, reports, folder)
        assert [route.name for route in decision.fired] == fires
    parcels = results_for(routes, decision.fired, ["report.dcm"], folder, folder, root.layout.results)
    parcels += originals_for(root.database, revision, decision.fired)
    assert [parcel.kind for parcel in parcels] == ["report", *[outbox.ORIGINAL] * 3]


def test_the_higher_priority_is_claimed_first(root: Root) -> None:
    for series in ("1.2.3.1", "1.2.3.2"):
        root.hold(*stack(2, series=series))
    root.complete(1)
    root.complete(2)
    start(
        root, config({"name": "urgent", "when": 'SeriesInstanceUID == "1.2.3.2"', "priority": "high"}, {"name": "rest"})
    )
    first = jobs.claim(root.database, "one")
    assert first is not None
    assert revisions.get(root.database, first.revision_id).series_id == 2


def test_a_study_route_waits_for_the_study_and_takes_all_of_it(root: Root) -> None:
    root.hold(*stack(2), *stack(2, series="1.2.3.2", rows=8))
    root.complete(1)
    routes = config(
        {"name": "whole", "when": "Rows == 8", "level": "study", "run": "none", "send": ["originals"], "to": ["pacs"]}
    )
    dispatcher = Dispatcher(root.database, root.layout)
    dispatcher.start_complete(routes)
    assert state(root)[0] is RevisionState.COMPLETE
    root.complete(2)
    dispatcher.start_complete(routes)
    assert [state(root, series)[0] for series in (1, 2)] == [RevisionState.KEPT] * 2
    assert owed(root) == [("pacs", "original", 4)]
    dispatcher.start_complete(routes)
    assert owed(root) == [("pacs", "original", 4)]


WANTED = {
    "name": "pair", "level": "study", "run": "none", "send": ["originals"], "to": ["pacs"],
    "required": ["Rows == 8 and instances >= 2", 'Modality == "PT"'],
}  # fmt: skip


def test_a_study_is_complete_for_a_route_once_the_series_it_requires_are(root: Root) -> None:
    """A third series still comes: the route takes it when it is complete."""
    root.hold(*stack(2, rows=8), *stack(1, series="1.2.3.2", modality="PT"), *stack(3, series="1.2.3.3"))
    dispatcher = Dispatcher(root.database, root.layout)
    routes = config(WANTED)
    root.complete(1)
    dispatcher.start_complete(routes)
    assert state(root)[0] is RevisionState.COMPLETE
    root.complete(2)
    dispatcher.start_complete(routes)
    assert [state(root, series)[0] for series in (1, 2)] == [RevisionState.KEPT] * 2
    assert root.one("SELECT state FROM studies") == "OPEN"
    assert owed(root) == [("pacs", "original", 3)]
    root.complete(3)
    dispatcher.start_complete(routes)
    assert root.one("SELECT state FROM studies") == "COMPLETE"
    assert owed(root) == [("pacs", "original", 6)]


def test_a_series_that_other_routes_have_taken_goes_with_its_study_before_that_is_complete(root: Root) -> None:
    root.hold(*stack(2, rows=8), *stack(1, series="1.2.3.2", modality="PT"), *stack(3, series="1.2.3.3"))
    routes = config({"name": "ct", "when": "Rows == 8", "run": "none"}, WANTED)
    dispatcher = Dispatcher(root.database, root.layout)
    root.complete(1)
    dispatcher.start_complete(routes)
    assert (state(root)[0], owed(root)) == (RevisionState.KEPT, [])
    root.complete(2)
    dispatcher.start_complete(routes)
    assert owed(root) == [("pacs", "original", 3)]


def test_a_study_without_what_is_required_says_so_and_goes_once_that_has_come(root: Root) -> None:
    root.hold(*stack(2, rows=8))
    routes = config(WANTED)
    dispatcher = Dispatcher(root.database, root.layout)
    root.complete(1)
    dispatcher.start_complete(routes)
    kept, reason = state(root)
    assert kept is RevisionState.KEPT
    assert "pair does not fire: a required series is missing" in reason
    root.hold(*stack(1, series="1.2.3.2", modality="PT"))
    root.complete(2)
    dispatcher.start_complete(routes)
    assert owed(root) == [("pacs", "original", 3)]


@pytest.mark.parametrize(
    ("required", "series", "absent"),
    [
        (("Rows == 4", "Rows == 4"), ({"Rows": 4},), ("Rows == 4",)),
        (("Rows == 4", "Rows == 4"), ({"Rows": 4}, {"Rows": 4}), ()),
        (("Rows >= 4", "Rows == 4"), ({"Rows": 4}, {"Rows": 8}), ()),
        (("Rows >= 4", "Rows == 4", "Rows == 8"), ({"Rows": 4}, {"Rows": 8}), ("Rows == 8",)),
        (("Rows == 4",), (), ("Rows == 4",)),
        (("Rows == 4",), ({},), ("Rows == 4",)),
    ],
)
def test_each_required_condition_takes_a_series_of_its_own(
    required: tuple[str, ...], series: tuple[dict[str, int], ...], absent: tuple[str, ...]
) -> None:
    route = Route(name="all", level="study", required=required)
    facts = [Facts({word: (float(value),) for word, value in one.items()}) for one in series]
    (step,) = decide([route], Routing(), facts, results_to_come=False, level="study").steps
    assert step.outcome is (Outcome.ABSENT if absent else Outcome.FIRES)
    if absent:
        assert step.because == absent


def test_own_results_are_never_routed(root: Root) -> None:
    root.hold(*stack(2, manufacturer="ctnode"))
    root.complete()
    start(root, config({"name": "all", "when": "true", "send": ["originals"], "to": ["pacs"], "run": "none"}))
    assert "own result" in state(root)[1]
    assert owed(root) == []


def test_values_are_read_in_their_character_set_and_type(tmp_path: Path, root: Root) -> None:
    root.push(stack(1))
    path = next(root.layout.incoming.rglob("*.dcm"))
    raw = path.read_bytes()
    text = element(0x08, 0x05, "CS", "ISO_IR 192")
    described = element(0x08, 0x103E, "LO", "Größe".encode())
    place = raw.index(element(0x08, 0x08, "CS", "ORIGINAL\\PRIMARY\\AXIAL"))
    after = raw.index(element(0x08, 0x1090, "LO", "SCANNER 64"))
    path.write_bytes(raw[:place] + text + raw[place:after] + described + raw[after:])
    wanted = {0x0008103E: "LO", 0x00280010: "US", 0x00200032: "DS", 0x00080008: "CS", 0x00180050: "DS"}
    assert read_values(path, wanted) == {
        0x0008103E: ("Größe",), 0x00280010: (4.0,), 0x00200032: (0.0, 0.0, 0.0),
        0x00080008: ("ORIGINAL", "PRIMARY", "AXIAL"),
    }  # fmt: skip


def test_the_command_tells_which_part_decided_and_no_value(root: Root, tmp_path: Path) -> None:
    root.hold(*stack(2))
    root.complete()
    file = tmp_path / "config.toml"
    file.write_text(
        f'[storage]\nroot = "{root.layout.root}"\nresults = "{root.layout.results}"\n'
        """[[routes]]
name = "thin"
when = 'Modality == "CT" and Rows > 100'
[[routes]]
name = "named"
when = 'calling_ae == "SENDER" and has PatientName'
"""
    )
    told = CliRunner().invoke(cli, ["--config", str(file), "route", "test", "1.2.3.1"])
    assert told.exit_code == 0, told.output
    lines = [line.strip() for line in told.output.splitlines()]
    assert lines == [
        "thin: does not fire", "Rows > 100", "named: fires", 'calling_ae == "SENDER"', "has PatientName",
    ]  # fmt: skip
    stored = next(root.layout.store.rglob("*.dcm"))
    told = CliRunner().invoke(cli, ["--config", str(file), "route", "test", str(stored), "--json"])
    assert [step["outcome"] for step in json.loads(told.output)] == ["NOT", "UNKNOWN"]
    assert told.exit_code == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("when = 'SliceThicknes < 3'", ("at character 1", "SliceThickness")),
        ('send = ["report"]', ("send and to belong together",)),
        ('send = ["report"]\nto = ["nobody"]', ("names no target nobody",)),
        (
            (
                "send = ['seg']\nto = ['shelf']\n[[targets]]\nname = 'shelf'\nkind = 'folder'\npath = '.'\n"
                "[outputs]\nseg = 'none'"
            ),
            ("a sends seg, which is not made", "outputs.seg"),
        ),
        ("run = 'none'\nwhen = 'lungs == \"OK\"'", ("makes no results",)),
        ("level = 'study'\nwhen = 'lungs == \"OK\"'", ("before there are results",)),
        ("[[routes]]\nname = 'b'", ("both the default",)),
        ("required = ['Rows == 4']", ('needs level = "study"',)),
        ("level = 'study'\nrequired = ['Rowz == 4']", ("at character 1", "Rows")),
        ("level = 'study'\nrequired = ['lungs == \"OK\"']", ("before there are results",)),
    ],
)
def test_a_route_that_cannot_be_meant_is_found_when_the_configuration_is_read(
    tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"[[routes]]\nname = 'a'\n{text}\n")
    told = CliRunner().invoke(cli, ["--config", str(file), "check-config"])
    assert told.exit_code != 0
    assert all(word in str(told.exception) for word in words), str(told.exception)
