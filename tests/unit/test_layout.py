"""A UID becomes one safe name below the root, whatever a peer calls its objects."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ctnode.archive.layout import (
    Layout,
    is_strict_uid,
    parse_series_name,
    path_part,
    require_keepable,
    series_name,
    series_part,
)
from ctnode.words import BadInstance

pytestmark = pytest.mark.unit

ANY = st.text(max_size=80)
STRICT = st.lists(st.integers(0, 10**9), min_size=1, max_size=6).map(lambda parts: ".".join(map(str, parts)))


@given(ANY)
@example("")
@example("..")
@example("../../etc/passwd")
@example("1.2\0.3")
@example("1.2.3\n")
@example("-rf")
@example("\ud800")
@example("x-" + "0" * 32)
@example("１.２")
def test_any_text_becomes_one_safe_component(uid: str) -> None:
    part = path_part(uid)
    assert part
    assert set(part) <= set("0123456789abcdefx-.")
    assert part not in {".", ".."}
    assert len(part) <= 64
    assert (Path("/node/store") / part).resolve().parent == Path("/node/store")


@given(STRICT)
def test_a_strict_uid_is_its_own_name(uid: str) -> None:
    assert is_strict_uid(uid) is (len(uid) <= 64)
    if len(uid) <= 64:
        assert path_part(uid) == uid


@given(ANY, ANY)
def test_different_uids_have_different_names(one: str, two: str) -> None:
    assert (path_part(one) == path_part(two)) is (one == two)


@pytest.mark.parametrize(
    "uid", ["", ".", "1.", ".1", "1..2", "01", "1.02", "1.2 ", " 1.2", "1.2\n", "1.a", "1" * 65, "٣.٤", "1,2", "-1"]
)
def test_what_is_not_strict_is_hashed(uid: str) -> None:
    assert not is_strict_uid(uid)
    assert path_part(uid).startswith("x-")
    assert len(path_part(uid)) == 34


@given(st.text(min_size=1, max_size=64))
def test_what_is_keepable_has_a_path(uid: str) -> None:
    try:
        require_keepable(uid, "UID")
    except BadInstance:
        return
    path = Layout(Path("/node"), Path("/node/results")).store_path(uid, uid, 1, uid)
    assert len(path.parts) == 3
    assert ".." not in path.parts


@pytest.mark.parametrize("uid", ["", "1" * 65, "1/2", "1\\2", "a\0b", ".", "..", "....", "ü" * 65])
def test_what_is_not_keepable(uid: str) -> None:
    with pytest.raises(BadInstance):
        require_keepable(uid, "UID")


@given(STRICT, st.integers(1, 10**6))
def test_a_split_names_itself_and_is_found_again(uid: str, split: int) -> None:
    name = series_name(uid, split)
    assert name == (uid if split == 1 else f"{uid}~{split}")
    assert parse_series_name(name) == (uid, split)


@given(ANY, st.integers(1, 99))
def test_a_split_folder_is_one_safe_component(uid: str, split: int) -> None:
    part = series_part(uid, split)
    assert "/" not in part
    assert parse_series_name(part)[1] == split


@given(ANY)
@example("1.2~")
@example("~2")
@example("1.2~²")
@example("1.2~0")
@example("1.2~1")
@example("1.2~" + "9" * 5000)
def test_any_name_can_be_asked_for(name: str) -> None:
    uid, split = parse_series_name(name)
    assert split >= 1
    assert uid == name or f"{uid}~{split}" == name


def test_folders_of_a_root() -> None:
    layout = Layout(Path("/r"), Path("/elsewhere"))
    assert layout.database == Path("/r/ctnode.db")
    assert layout.result_directory("1.2", "1.2.3", 2, 4) == Path("/elsewhere/1.2/1.2.3~2/r4")
    assert layout.store_path("1.2", "1.2.3", 1, "1.2.3.4", suffix=".abcdef") == Path("1.2/1.2.3/1.2.3.4.abcdef.dcm")
