"""Lungs of many synthetic chests, judged by their analytic truth, and of many things that have none."""

import numpy as np
import pytest

from ctnode.ct.lungs import segment
from ctnode.words import LungStatus
from tests.lung_phantom_cases import CASES, make
from tests.lung_phantoms import LEFT, RIGHT
from tests.lungless_phantoms import LUNGLESS

pytestmark = pytest.mark.integration

LEAST_DICE, LEAST_DICE_AT_LIMIT, LEAST_NODULE, MOST_CROSSED = 0.98, 0.94, 0.95, 0.02
DOUBTFUL = {LungStatus.SUSPECT, LungStatus.TRUNCATED}


def dice(found, truth):
    """1 where both are empty; a lung that is not there and that was found all the same gives 0."""
    total = np.count_nonzero(found) + np.count_nonzero(truth)
    return 2.0 * np.count_nonzero(found & truth) / total if total else 1.0


@pytest.mark.parametrize("name", CASES)
def test_the_lungs_of_a_phantom(name):
    case = CASES[name]
    volume, truth = make(case)

    found = segment(volume)

    scores = {side: dice(found.labels == side, truth.labels == side) for side in (RIGHT, LEFT)}
    crossed = {
        side: np.mean(found.labels[truth.labels == side] == other) if (truth.labels == side).any() else 0.0
        for side, other in ((RIGHT, LEFT), (LEFT, RIGHT))
    }
    told = f"{name}: {found.status} {found.reasons} Dice {scores} crossed {crossed}"
    print(told)  # pytest -rA makes a table of it
    assert max(crossed.values()) < MOST_CROSSED, told
    if case.limit:
        assert min(scores.values()) >= LEAST_DICE_AT_LIMIT or found.status in DOUBTFUL, told
        return
    assert min(scores.values()) >= LEAST_DICE, told
    assert found.status in case.statuses, told
    if truth.nodules.any():
        inside = np.isin(found.labels[truth.nodules], (RIGHT, LEFT)).mean()
        assert inside >= LEAST_NODULE, f"{told} nodules {inside}"


@pytest.mark.parametrize("name", LUNGLESS)
def test_what_has_no_lungs(name):
    found = segment(LUNGLESS[name]())

    assert found.status is LungStatus.NO_LUNGS, (found.status, found.reasons)
    assert not found.labels.any()
