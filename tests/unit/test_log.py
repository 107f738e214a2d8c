"""What may be said: fields of an allow-list, and nothing that a library quotes from a data set."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator

import pydicom
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from ctnode.config import Log
from ctnode.ops import log

pytestmark = pytest.mark.unit

CANARY = "CANARY^PATIENT"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    with warnings.catch_warnings():
        yield lambda: capsys.readouterr().err
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_fields_of_the_list_are_written_and_all_others_are_not(said: Callable[[], str]) -> None:
    log.configure(Log(level="debug"), role="keep")
    logger = log.get(association="1-a")
    logger.info("series complete", series="1.2.3", patient_name=CANARY, PatientID=CANARY, exc_info=None)
    logger.bind(description=CANARY).warning("x")
    text = said()
    first, second = lines(text)
    assert first["event"] == "series complete"
    assert (first["series"], first["association"], first["role"], first["level"]) == ("1.2.3", "1-a", "keep", "info")
    assert str(first["timestamp"]).endswith("Z")
    assert first["patient_name"] == first["PatientID"] == second["description"] == "[redacted]"
    assert CANARY not in text


@given(name=st.text(min_size=1, max_size=20))
def test_any_other_field_is_redacted(name: str) -> None:
    event = log._redact(None, "info", {name: CANARY})
    assert (event[name] == CANARY) is (name in log.ALLOWED_FIELDS)


def test_no_allowed_field_is_named_for_a_patient() -> None:
    assert not {
        name for name in log.ALLOWED_FIELDS if any(word in name for word in ("patient", "name", "birth", "desc"))
    }


@pytest.mark.parametrize("library", ["pydicom", "pynetdicom", "pynetdicom.acse", "pynetdicom.dimse", "py.warnings"])
def test_libraries_that_quote_values_are_silent(said: Callable[[], str], library: str) -> None:
    log.configure(Log(level="debug"), role="keep")
    logging.getLogger(library).critical(CANARY)
    logging.getLogger(library).error("value %s", CANARY)
    assert said() == ""


def test_warnings_that_quote_values_are_silent(said: Callable[[], str]) -> None:
    log.configure(Log(level="debug"), role="keep")
    dataset = pydicom.Dataset()
    dataset.PatientBirthDate = CANARY
    warnings.warn(CANARY, UserWarning, stacklevel=1)
    assert said() == ""


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_least_level_that_is_written(said: Callable[[], str], level: str, count: int) -> None:
    log.configure(Log(level=level), role="keep")  # type: ignore[arg-type]
    logger = log.get()
    for method in ("debug", "info", "warning", "error"):
        getattr(logger, method)("x")
    assert len(lines(said())) == count


def test_under_a_service_manager_each_line_has_its_priority(
    said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    log.configure(Log(), role="keep")
    log.get().error("x")
    log.get().info("y")
    assert [line[:3] for line in said().splitlines()] == ["<3>", "<6>"]


def test_text_is_for_people(said: Callable[[], str]) -> None:
    log.configure(Log(format="text"), role="keep")
    log.get().info("node ready", patient=CANARY)
    text = said()
    assert "node ready" in text
    assert not text.startswith("{")
    assert CANARY not in text
