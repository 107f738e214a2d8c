"""What may be said: fields of an allow-list, and nothing that a library quotes from a data set."""

from __future__ import annotations

import ast
import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

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


@pytest.mark.parametrize("library", ["pydicom", "pynetdicom", "pynetdicom.acse", "pynetdicom.dimse", "gdcm"])
def test_libraries_that_quote_values_are_told_by_their_place_alone(said: Callable[[], str], library: str) -> None:
    log.configure(Log(level="debug"), role="keep")
    logging.getLogger(library).info(CANARY)
    for level in ("error", "critical"):
        getattr(logging.getLogger(library), level)("value %s", CANARY, exc_info=ValueError(CANARY))
    text = said()
    assert CANARY not in text
    told = [(line["event"], line["library"], line["level"]) for line in lines(text)]
    assert told == [("library message", library, "error")]
    assert str(lines(text)[0]["code"]).startswith("test_log:")


def test_warnings_that_quote_values_are_told_by_their_place_alone(said: Callable[[], str]) -> None:
    log.configure(Log(level="debug"), role="keep")
    dataset = pydicom.Dataset()
    dataset.PatientBirthDate = CANARY
    for number in range(1000):
        warnings.warn(f"{CANARY} {number}", UserWarning, stacklevel=1)
    text = said()
    assert CANARY not in text
    # pydicom warns and logs.
    assert {(line["library"], str(line["code"]).partition(":")[0]) for line in lines(text)} == {
        ("UserWarning", "valuerep"), ("UserWarning", "test_log"), ("pydicom", "misc"),
    }  # fmt: skip
    assert len(text.splitlines()) == 3
    # Nothing remembers what was quoted.
    assert CANARY not in repr(globals().get("__warningregistry__"))


def test_a_place_in_a_library_is_told_again_with_its_count(
    said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log.configure(Log(), role="keep")
    for moment in (0.0, 1.0, 2.0, log.LIBRARY_S, log.LIBRARY_S + 1):
        monkeypatch.setattr(log.time, "monotonic", lambda moment=moment: moment)
        logging.getLogger("pynetdicom").error(CANARY)
    assert [line["count"] for line in lines(said())] == [1, 3]


def test_what_stands_for_a_uid_and_is_none_is_said_by_its_digest(said: Callable[[], str]) -> None:
    log.configure(Log(), role="keep")
    log.get().info("x", series=CANARY, study="1.2.3", sop_instance="1.2~2", path="y" * 9999)
    (line,) = lines(said())
    assert (line["study"], line["sop_instance"], len(str(line["path"]))) == ("1.2.3", "1.2~2", log.LONGEST)
    assert str(line["series"]).startswith("x-")


def test_what_is_bound_stands_on_every_line_of_its_thread(said: Callable[[], str]) -> None:
    log.configure(Log(), role="receiver")

    def serve(name: str) -> None:
        log.bind(association=name)
        log.get().info("x")
        logging.getLogger("pynetdicom").warning(CANARY)

    for name in ("1-a", "2-b"):
        thread = threading.Thread(target=serve, args=(name,))
        thread.start()
        thread.join()
    log.get().info("y")
    assert [line.get("association") for line in lines(said())] == ["1-a", "1-a", "2-b", None]


def test_the_place_of_an_exception_says_nothing_of_its_words() -> None:
    with pytest.raises(ValueError, match=r"\^") as caught:
        pydicom.valuerep.DA(CANARY)
    said = log.place(caught.value)
    assert said.startswith("ValueError")
    assert CANARY not in said


def calls_of_the_log() -> Iterator[tuple[str, ast.Call]]:
    """Yield the calls in ``ctnode`` that write a line or bind fields."""
    for module in sorted((Path(__file__).parents[2] / "ctnode").rglob("*.py")):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                on = ast.unparse(node.func.value)
                if node.func.attr in METHODS and on in {"log", "log.get()", "self._log", "bound", "logger"}:
                    yield f"{module.name}:{node.lineno}", node


METHODS = {"debug", "info", "warning", "error", "bind", "get"}


def test_every_line_is_a_constant_with_fields_of_the_list() -> None:
    calls = list(calls_of_the_log())
    assert len(calls) > 50
    for where, call in calls:
        assert isinstance(call.func, ast.Attribute)
        if call.func.attr in METHODS - {"bind", "get"}:
            assert isinstance(call.args[0], ast.Constant), f"{where}: an event is a constant"
        assert {word.arg for word in call.keywords} <= log.ALLOWED_FIELDS, where
        assert not [word for word in call.keywords if ast.unparse(word.value) == "str(error)"], where


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_least_level_that_is_written(said: Callable[[], str], level: str, count: int) -> None:
    log.configure(Log(level=level), role="keep")  # type: ignore[arg-type]
    logger = log.get()
    for method in ("debug", "info", "warning", "error"):
        getattr(logger, method)("x")
    assert len(lines(said())) == count


@pytest.mark.parametrize(("shift", "prefixes"), [(0, ["<3>", "<4>", "<6>"]), (1, ["{", "{", "{"])])
def test_lines_of_the_journal_have_their_priority_and_those_of_a_file_have_not(
    said: Callable[[], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shift: int, prefixes: list[str]
) -> None:
    file = tmp_path / "stderr"
    with file.open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + shift}")
        log.configure(Log(), role="keep")
        log.get().error("x")
        logging.getLogger("pydicom").warning(CANARY)
        log.get().info("y")
    assert [line[: len(prefixes[0])] for line in file.read_text().splitlines()] == prefixes


def test_text_is_for_people(said: Callable[[], str]) -> None:
    log.configure(Log(format="text"), role="keep")
    log.get().info("node ready", patient=CANARY)
    text = said()
    assert "node ready" in text
    assert not text.startswith("{")
    assert CANARY not in text
