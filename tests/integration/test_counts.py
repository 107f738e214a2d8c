"""What headers say of how many there should be: kept with each instance, and the same after a rebuild."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from ctnode.archive import counts, rebuild
from ctnode.words import Acquisition, Concatenation
from tests.archive_root import Image, Root, stack

pytestmark = pytest.mark.integration


def stated(number: str, images: str) -> tuple[tuple[int, int, str, bytes | str], ...]:
    return ((0x20, 0x12, "IS", number), (0x20, 0x1002, "IS", images))


def part(uid: str, number: int, total: int | None, frames: int = 10) -> tuple[tuple[int, int, str, bytes | str], ...]:
    totals = [] if total is None else [(0x20, 0x9163, "US", struct.pack("<H", total))]
    return (
        (0x20, 0x9161, "UI", uid), (0x20, 0x9162, "US", struct.pack("<H", number)), *totals,
        (0x28, 0x08, "IS", str(frames)),
    )  # fmt: skip


@pytest.fixture
def root(tmp_path: Path):
    node = Root(tmp_path / "node")
    yield node
    node.close()


def rebuilt(root: Root) -> None:
    root.database.close()
    rebuild.set_aside(root.layout)
    root._open()
    rebuild.rebuild(root.database, root.layout)


def test_images_in_acquisition_by_acquisition_and_over_the_study(root: Root) -> None:
    root.hold(*stack(3, more=stated("1", "5")))
    root.hold(*stack(2, series="1.2.3.2", more=stated("1", "5")))
    root.hold(*stack(1, series="1.2.3.3", more=stated("2", "4")))
    assert counts.of_series(root.database, 1).acquisitions == (Acquisition(1, 5, 3, 5),)
    assert counts.of_series(root.database, 3).acquisitions == (Acquisition(2, 4, 1, 1),)
    rebuilt(root)
    assert counts.of_series(root.database, 1).acquisitions == (Acquisition(1, 5, 3, 5),)


def test_the_largest_number_counts_and_one_without_an_acquisition_is_of_its_series(root: Root) -> None:
    root.hold(*(Image(f"1.2.3.1.{k}", number=str(k), more=((0x20, 0x1002, "IS", str(k)),)) for k in (3, 7, 2)))
    assert counts.of_series(root.database, 1).acquisitions == (Acquisition(None, 7, 3, 3),)


@pytest.mark.parametrize("value", ["", "many", "99999999999", "1.5"])
def test_what_is_no_number_says_nothing(root: Root, value: str) -> None:
    root.hold(*stack(3, more=stated("1", value)))
    assert counts.of_series(root.database, 1).acquisitions == ()


def test_the_parts_of_a_cut_image(root: Root) -> None:
    images = [Image(f"1.2.3.1.{k}", number=str(k), position=None, more=part("1.2.8", k, 4)) for k in (1, 2, 4)]
    images += [Image(f"1.2.3.1.9{k}", number=f"9{k}", position=None, more=part("1.2.7", k, None)) for k in (1, 3)]
    root.hold(*images)
    content = counts.of_series(root.database, 1)
    assert content.concatenations == (Concatenation("1.2.7", None, (1, 3)), Concatenation("1.2.8", 4, (1, 2, 4)))
    assert [one.missing for one in content.concatenations] == [1, 1]
    assert (content.multiframes, content.frames) == (5, 50)
    rebuilt(root)
    assert counts.of_series(root.database, 1) == content


def test_what_a_newer_object_took_the_place_of_counts_no_more(root: Root) -> None:
    root.hold(*stack(3, more=stated("1", "3")))
    root.hold(Image("1.2.3.1.2", number="9", position=2.5, pixels=b"abcd", more=stated("1", "3")))
    content = counts.of_series(root.database, 1)
    assert content.acquisitions == (Acquisition(1, 3, 3, 3),)
    assert sorted(content.numbers) == [1, 3, 9]


def test_a_localizer_has_a_number_and_no_place(root: Root) -> None:
    root.hold(*stack(2))
    root.database.execute("UPDATE instances SET is_localizer = 1 WHERE instance_number = 1")
    content = counts.of_series(root.database, 1)
    assert (sorted(content.numbers), content.positions_mm) == ([1, 2], (2.5,))
