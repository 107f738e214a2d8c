"""Instances are found by their SOP Instance UID, however it is made, and old indexes get what it needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctnode.archive import keys
from tests.archive_root import Image, Root, stack

pytestmark = pytest.mark.integration

# The longest, made of zeros, the same last 18 digits, letters that no UID has but that come all the same.
NAMES = (
    "1." + "9" * 62, "2.25.0", "2.25.00", "1.2.111222333444555666", "1.3.111222333444555666", "1.2.3.abc", "x", "1.-5",
)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    made = Root(tmp_path)
    yield made
    made.close()


def test_each_is_found_by_its_own_name_and_none_by_another(root: Root) -> None:
    root.hold(*(Image(name) for name in NAMES))
    for name in NAMES:
        ((_, _, path),) = keys.objects_of(root.database, name)
        assert root.one("SELECT sop_instance FROM instances WHERE path = ?", path) == name
    for name in ("1.9." + "9" * 60, "2.25", "1.4.111222333444555666", "", "1.2.3"):
        assert not keys.is_held(root.database, name)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.text("0123456789.", min_size=1, max_size=64), max_size=10), st.text("0123456789.", max_size=64))
def test_any_name(root: Root, names: set[str], other: str) -> None:
    with root.database.immediate():
        root.database.execute("DELETE FROM instances")
    held = {name for name in names if name.strip(".")}
    root.hold(*(Image(name, series=f"1.2.{hash(frozenset(held)) & 0xFFFF}") for name in held))
    assert {name for name in {*names, other} if keys.is_held(root.database, name)} == held


def test_all_objects_of_a_name_in_any_generation(root: Root) -> None:
    root.hold(Image("1.2.3.1.1"))
    with root.database.immediate():
        # The next row gets the id after the largest.
        root.database.execute("UPDATE instances SET id = 1000000")
        root.database.execute("UPDATE instance_keys SET instance_id = 1000000, generation = 1000000 >> 12")
    root.hold(Image("1.2.3.1.1", pixels=b"4321"), Image("1.2.3.1.2"))
    assert len(keys.objects_of(root.database, "1.2.3.1.1")) == 2
    with root.database.immediate():
        root.database.execute("DELETE FROM instances WHERE id = 1000000")
    assert len(keys.objects_of(root.database, "1.2.3.1.1")) == 1


def test_what_is_deleted_is_found_no_more(root: Root) -> None:
    root.hold(*stack(3))
    with root.database.immediate():
        root.database.execute("DELETE FROM instances WHERE sop_instance = '1.2.3.1.2'")
    assert [keys.is_held(root.database, f"1.2.3.1.{k}") for k in (1, 2, 3)] == [True, False, True]
    assert root.one("SELECT count(*) FROM instance_keys") == 2


def test_an_older_index_gets_its_keys(root: Root) -> None:
    root.hold(*stack(3))
    with root.database.immediate():
        for statement in (
            "DROP TABLE instance_keys", "DROP TRIGGER instances_keyed", "DROP TRIGGER instances_unkeyed",
            "CREATE INDEX instances_by_sop ON instances (sop_instance)",
            "DELETE FROM _sqlite_migrations WHERE name = '0012_keys'",
        ):  # fmt: skip
            root.database.execute(statement)
    root.restart()
    assert all(keys.is_held(root.database, f"1.2.3.1.{k}") for k in (1, 2, 3))
    root.hold(Image("1.2.3.1.9"))
    assert keys.is_held(root.database, "1.2.3.1.9")
