"""The language of routes: parsed and printed without loss, typed before anything is received, three-valued."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ctnode.config import Route, Routing
from ctnode.config.when import Facts, WhenError, compile_when, evaluate, parse, show
from ctnode.config.when.evaluate import is_like
from ctnode.config.when.names import MEASURES
from ctnode.config.when.syntax import Chain, Compare, Expression, Has, Literal, Name, Not, Truth
from ctnode.ct.measure import LungNumbers
from ctnode.flow.routes import Outcome, decide

pytestmark = pytest.mark.unit

words = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}(\.[a-z]{1,5})?", fullmatch=True).filter(
    lambda word: word not in {"and", "or", "not", "has", "in", "contains", "like", "true", "false"}
)
names = st.builds(Name, words, st.none() | st.integers(0, 999))
numbers = st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value + 0.0)
literals = st.builds(Literal, st.text(max_size=8) | numbers)
signs = st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "contains", "like"])
leaves = (
    st.builds(Truth, st.booleans())
    | st.builds(Has, names)
    | st.builds(Compare, names, signs, st.tuples(literals))
    | st.builds(Compare, names, st.just("in"), st.lists(literals, min_size=1, max_size=3).map(tuple))
)


def grown(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.builds(Not, inner) | st.builds(Chain, st.sampled_from(["and", "or"]), several)


expressions = st.recursive(leaves, grown, max_leaves=8)


@given(expressions)
def test_what_is_printed_is_parsed_to_the_same_tree(expression: Expression) -> None:
    assert parse(show(expression)) == expression


@example("\x1f")
@example("\xa0x")
@given(st.text(max_size=60))
def test_any_text_is_an_expression_or_an_error_with_its_place(text: str) -> None:
    place = 0
    try:
        parse(text)
    except WhenError as error:
        place = error.at
    assert 0 <= place <= len(text)


facts = st.dictionaries(st.sampled_from(["Rows", "Columns"]), st.tuples(st.floats(0, 3)), max_size=2).map(Facts)
conditions = st.recursive(
    st.builds(
        lambda word, sign, value: Compare(Name(word), sign, (Literal(float(value)),)),
        st.sampled_from(["Rows", "Columns"]),
        st.sampled_from(["<", ">", "=="]),
        st.integers(0, 3),
    ),
    grown,
    max_leaves=6,
)


@given(conditions, facts, st.floats(0, 3), st.floats(0, 3))
def test_what_is_decided_with_a_value_missing_stays_so_once_it_is_there(
    condition: Expression, known: Facts, rows: float, columns: float
) -> None:
    before = evaluate(condition, known).holds
    after = evaluate(condition, Facts({"Rows": (rows,), "Columns": (columns,), **known.values})).holds
    assert after is not None
    assert before in {None, after}


@given(conditions, facts)
def test_not_turns_true_and_false_and_leaves_unknown(condition: Expression, known: Facts) -> None:
    inner = evaluate(condition, known)
    outer = evaluate(Not(condition), known)
    assert outer.holds is (None if inner.holds is None else not inner.holds)
    assert outer.because == inner.because


@pytest.mark.parametrize(
    ("text", "at", "words"),
    [
        ("", 1, "here a name"),
        ('Modality == "CT" and SliceThicknes <= 3', 22, "SliceThickness"),
        ('verdict == "COMPLT"', 12, "COMPLETE, LIKELY, SUSPECT"),
        ("PixelSpacing == 1", 14, "PixelSpacing[0]"),
        ("Rows[0] == 1", 1, "leave out [0]"),
        ('Rows == "512"', 9, "a number"),
        ("AccessionNumber == 3", 20, 'a "text"'),
        ('StudyDate > "2026-02-30"', 13, "a date is written"),
        ('StudyTime > "25:00"', 13, "a time is written"),
        ('Modality < "CT"', 10, "numbers, dates and times"),
        ("Rows contains 1", 6, "texts and lists"),
        ('SliceThickness like "*"', 16, "is for texts"),
        ("ReferencedImageSequence == 3", 1, "VR SQ"),
        ("PixelData == 3", 1, "no value to compare"),
        ('Modality = "CT"', 10, "no part of the language"),
        ('Modality == "CT', 13, "no end"),
        ("(true", 6, "a ) is missing"),
        ('Modality == "CT" SliceThickness', 18, "should end"),
        ("Rows in 3", 9, "a list"),
        ("__import__('os')", 11, "should stand"),
        ("not " * 60 + "true", 205, "nested deeper"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, at: int, words: str) -> None:
    with pytest.raises(WhenError) as wrong:
        compile_when(text)
    assert wrong.value.at == at - 1
    assert words in str(wrong.value)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('Modality == "ct"', True), ('Modality in ["MR", "CT"]', True), ('Modality != "CT"', False),
        ('ImageType contains "axial"', True), ('ImageType contains "AX"', False), ('ImageType[0] == "ORIGINAL"', True),
        ('ImageType[7] == "X"', None), ('SeriesDescription contains "lung"', True),
        ('SeriesDescription like "* lung"', True), ('SeriesDescription like "lung"', False),
        ("PixelSpacing[1] < 0.75", True), ("PatientAge >= 64", True), ('StudyDate >= "20260102"', True),
        ('StudyTime < "12:00"', True), ("SliceThickness > 3", None), ("has SliceThickness", False),
        ("not SliceThickness > 3", None), ('SliceThickness > 3 or Modality == "CT"', True),
        ('SliceThickness > 3 and Modality == "MR"', False), ("false or true", True), ("true or true and false", True),
    ],
)  # fmt: skip
def test_what_holds(text: str, holds: bool | None) -> None:
    known = Facts(
        {
            "Modality": ("CT",), "ImageType": ("ORIGINAL", "PRIMARY", "AXIAL"), "SeriesDescription": ("Thin Lung",),
            "PixelSpacing": (0.8, 0.7), "PatientAge": (65.0,), "StudyDate": ("20260102",), "StudyTime": ("113000.5",),
        }
    )  # fmt: skip
    assert evaluate(compile_when(text), known).holds is holds


def test_the_parts_that_decided_are_told() -> None:
    condition = compile_when('Modality == "CT" and (Rows > 500 or Columns > 500) and SliceThickness <= 3')
    known = {"Modality": ("CT",), "Rows": (512.0,), "Columns": (512.0,)}
    assert evaluate(condition, Facts(known)).because == ("SliceThickness <= 3",)
    thick = Facts({**known, "SliceThickness": (5.0,)})
    assert evaluate(condition, thick).because == ("SliceThickness <= 3",)
    thin = Facts({**known, "SliceThickness": (1.0,)})
    assert evaluate(condition, thin).because == ('Modality == "CT"', "Rows > 500", "SliceThickness <= 3")


@given(st.text("ab", max_size=6), st.text("ab*?", max_size=6))
def test_like_is_what_a_shell_does(text: str, pattern: str) -> None:
    from fnmatch import fnmatchcase

    assert is_like(text, pattern) == fnmatchcase(text, pattern)


def test_every_number_of_the_measurements_can_be_asked_for() -> None:
    assert {field.name for field in dataclasses.fields(LungNumbers)} - {"status"} == set(MEASURES)


# ----------------------------------------------------------------------------------------------- decisions

CT = Facts({"Modality": ("CT",)})


def route(name: str, when: str, **keys: object) -> Route:
    return Route.model_validate({"name": name, "when": when, **keys})


def outcomes(*routes: Route, match: str = "all", known: Facts = CT, to_come: bool = True) -> list[Outcome]:
    routing = Routing.model_validate({"match": match})
    return [step.outcome for step in decide(routes, routing, [known], results_to_come=to_come).steps]


def test_all_or_the_first_that_fit_fire() -> None:
    routes = (route("mr", 'Modality == "MR"'), route("ct", 'Modality == "CT"'), route("any", "true"))
    assert outcomes(*routes) == [Outcome.NOT, Outcome.FIRES, Outcome.FIRES]
    assert outcomes(*routes, match="first") == [Outcome.NOT, Outcome.FIRES, Outcome.BEHIND]


def test_the_default_takes_what_no_other_takes_wherever_it_stands() -> None:
    default = route("rest", "")
    assert outcomes(default, route("mr", 'Modality == "MR"')) == [Outcome.FIRES, Outcome.NOT]
    assert outcomes(default, route("ct", 'Modality == "CT"')) == [Outcome.NOT, Outcome.FIRES]
    assert outcomes(default, route("ok", 'lungs == "OK"')) == [Outcome.LATER, Outcome.LATER]
    assert outcomes(default, route("ok", 'lungs == "OK"'), to_come=False) == [Outcome.FIRES, Outcome.UNKNOWN]


def test_the_first_match_waits_for_an_earlier_one_that_asks_for_results() -> None:
    routes = (route("ok", 'lungs == "OK"'), route("ct", 'Modality == "CT"'))
    assert outcomes(*routes, match="first") == [Outcome.LATER, Outcome.LATER]
    done = Facts({**CT.values, "lungs": ("SUSPECT",)})
    assert outcomes(*routes, match="first", known=done) == [Outcome.NOT, Outcome.FIRES]


def test_a_missing_tag_alone_waits_for_nothing() -> None:
    assert outcomes(route("thin", "SliceThickness < 3")) == [Outcome.UNKNOWN]
