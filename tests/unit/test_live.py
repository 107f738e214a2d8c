"""The rates of the page "now": what came over the seconds in which it came."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctnode.archive.layout import Layout
from ctnode.archive.readers import Readers
from ctnode.web.live import Live, Rates, Sample

pytestmark = pytest.mark.unit


def rates(*samples: tuple[float, int, dict[str, int]]) -> Rates:
    layout = Layout(Path("/nowhere"), Path("/nowhere/results"))
    live = Live(layout, Readers(layout.database))
    live._samples.extend(Sample(at, count, 1000 * count, 0, brought) for at, count, brought in samples)
    return live.rates()


def test_a_steady_sender_has_its_rate_however_long_it_has_been_there() -> None:
    steady = [(float(second), 20 * second, {"a": 20 * second}) for second in range(10)]
    assert rates(*steady).by_association == {"a": 20.0}
    assert rates(*steady).instances_per_s == 20.0
    assert rates(*steady).bytes_per_s == 20000.0
    assert rates(*steady).history == (20.0,) * 9


def test_one_that_has_just_begun_is_not_counted_over_the_time_before_it() -> None:
    idle = [(float(second), 0, dict[str, int]()) for second in range(6)]
    begun = [*idle, (6.0, 20, {"a": 20}), (7.0, 40, {"a": 40})]
    assert rates(*begun[:-1]).by_association == {"a": 20.0}
    assert rates(*begun).by_association == {"a": 20.0}


def test_one_that_pauses_falls_and_one_that_has_ended_is_gone() -> None:
    paused = [(float(second), 100, {"a": 100}) for second in range(8)]
    assert rates(*paused).by_association == {"a": 0.0}
    assert rates(*paused, (8.0, 100, {})).by_association == {}


def test_a_receiver_that_began_anew_counts_nothing_back() -> None:
    assert rates((0.0, 500, {"a": 9}), (1.0, 3, {"a": 2})).instances_per_s == 0.0
    assert rates((0.0, 500, {"a": 9}), (1.0, 3, {"a": 2})).by_association == {"a": 0.0}
    assert rates() == rates((0.0, 5, {})) == Rates(0.0, 0.0, {}, ())
