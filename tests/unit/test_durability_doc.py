"""``docs/durability.md`` names each step of an acknowledgement as the point at which a test kills it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "durability.md").read_text(encoding="utf-8")
POINT = re.compile(r"(?:spool|keeper)\.[a-z-]+")
STEP = re.compile(r"^\| (\d+) \|.*\| (?:`(.+)`)? ?\|[^|]*\|$", re.MULTILINE)


def points_of_the_code() -> set[str]:
    passed = re.compile(r'crash_point\("([^"]+)"\)')
    texts = [file.read_text(encoding="utf-8") for file in (REPOSITORY / "ctnode" / "archive").glob("*.py")]
    return {name for text in texts for name in passed.findall(text) if POINT.fullmatch(name)}


def test_each_step_has_a_point_and_each_point_a_step() -> None:
    steps = STEP.findall(PAGE)
    assert [int(number) for number, _ in steps] == list(range(1, len(steps) + 1))
    named = [point for _, point in steps]
    # Reading the answer is the sender's step, not ours.
    assert named.count("") == 1
    assert {point for point in named if point} == points_of_the_code()


def test_a_test_kills_at_each_point() -> None:
    killed_at = set(POINT.findall((REPOSITORY / "tests" / "acceptance" / "test_kill.py").read_text(encoding="utf-8")))
    assert killed_at == points_of_the_code()


def test_each_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(tests/[a-z_/]+\.py)`", PAGE)
    assert len(named) > 5
    assert [name for name in named if not (REPOSITORY / name).is_file()] == []
