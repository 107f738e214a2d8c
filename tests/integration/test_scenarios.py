"""What happens in hospitals, told in ``docs/scenarios.md`` and played with the real keeper in simulated time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios import Scenario, play, read_page, read_scenario

pytestmark = pytest.mark.integration

SCENARIOS = read_page()


@pytest.fixture(autouse=True)
def in_a_zone_with_summer_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.words)
def test_scenario(scenario: Scenario, tmp_path: Path) -> None:
    played = play(scenario, tmp_path / "node")
    assert played.outcome == scenario.outcome
    assert played.breaches == []


def test_there_are_enough_and_none_is_told_twice() -> None:
    assert len({scenario.words for scenario in SCENARIOS}) == len(SCENARIOS) >= 40
    told = {(scenario.script, scenario.rules, str(scenario.settings)) for scenario in SCENARIOS}
    assert len(told) == len(SCENARIOS)


def test_a_line_that_nobody_understands_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no verb fits: A sings"):
        play(read_scenario("", "0 A sings"), tmp_path / "node")
