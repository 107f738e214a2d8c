"""Whose series wait how long: the first rule that fits, and what it leaves out as without it."""

from __future__ import annotations

import pytest

from ctnode.config import Completion, CompletionRule, Config, Peer
from ctnode.flow.completion import quiet_seconds
from ctnode.flow.policy import Policy, Sender, policy_of

pytestmark = pytest.mark.unit

PLAIN = Completion(quiet_s=10.0, max_wait_s=900.0, association_hold_s=60.0, suspect="process")
RULES = (
    CompletionRule(name="pet-of-a", peer="a", modality="PT", suspect="hold"),
    CompletionRule(name="a", peer="a", quiet_s=30.0, max_wait_s=3600.0, count_images=False),
    CompletionRule(name="fast", called_ae="FAST", quiet_s=2.0, association_hold_s=5.0),
)


@pytest.mark.parametrize(
    ("words", "sender", "policy"),
    [
        ("nobody that a rule knows", Sender("CTNODE", "b", "CT"), Policy("", 900.0, 60.0, "process")),
        ("nothing known at all", Sender(), Policy("", 900.0, 60.0, "process")),
        ("peer and modality", Sender("CTNODE", "a", "PT"), Policy("pet-of-a", 900.0, 60.0, "hold")),
        (
            "only the peer",
            Sender("CTNODE", "a", "CT"),
            Policy("a", 3600.0, 60.0, "process", quiet_s=30.0, count_images=False),
        ),
        ("the called AE", Sender("FAST", "b", "CT"), Policy("fast", 900.0, 5.0, "process", 2.0)),
        (
            "two that fit",
            Sender("FAST", "a", "CT"),
            Policy("a", 3600.0, 60.0, "process", quiet_s=30.0, count_images=False),
        ),
        ("an AE title in other letters", Sender("fast", "b", "CT"), Policy("", 900.0, 60.0, "process")),
    ],
)
def test_the_first_rule_that_fits(words: str, sender: Sender, policy: Policy) -> None:
    assert policy_of(PLAIN, RULES, sender) == policy, words


def test_the_quiet_time_of_a_rule_comes_before_all_others() -> None:
    sender = Peer(name="a", ae_title="A", host="h", quiet_s=7.0)
    completion = PLAIN.model_copy(update={"called_ae_quiet_s": {"FAST": 3.0}})
    config = Config(completion=completion, completion_rules=RULES)
    assert quiet_seconds(config, sender, "FAST", 1, "CT") == 30.0
    assert quiet_seconds(config, None, "FAST", 1, "CT") == 2.0
    assert quiet_seconds(config, sender, "FAST", 1, "PT") == 7.0, "a rule without one leaves that of the peer"


def test_each_revision_doubles_it_up_to_the_longest_wait_of_the_rule() -> None:
    sender = Peer(name="a", ae_title="A", host="h")
    config = Config(completion=PLAIN, completion_rules=RULES)
    assert [quiet_seconds(config, sender, "", n, "CT") for n in (1, 2, 7, 8, 99)] == [30, 60, 1920, 3600, 3600]


@pytest.mark.parametrize(
    ("first", "second", "is_shadowed"),
    [
        ({}, {"peer": "a"}, True),
        ({"peer": "a"}, {"peer": "a", "modality": "CT"}, True),
        ({"peer": "a", "modality": "CT"}, {"peer": "a"}, False),
        ({"peer": "a"}, {"peer": "b"}, False),
        ({"called_ae": "X"}, {"peer": "a"}, False),
        ({}, {}, True),
    ],
)
def test_a_rule_that_takes_all_that_another_would(
    first: dict[str, str], second: dict[str, str], is_shadowed: bool
) -> None:
    one, other = CompletionRule(name="one", **first), CompletionRule(name="other", **second)
    assert one.shadows(other) is is_shadowed
