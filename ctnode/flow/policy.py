"""Which patience holds for a series: the first of [[completion_rules]] that fits it, else what [completion] says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ctnode.archive.database import Database
from ctnode.config import Completion, CompletionRule


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sends a series, and of what kind it is; what is not known is empty."""

    called_ae: str = ""
    peer: str = ""
    modality: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """The patience that holds for a series.

    Parameters
    ----------
    rule
        Name of the rule, empty where none fits.
    max_wait_s, association_hold_s, suspect
        As in [completion].
    quiet_s
        The rule's own quiet time, None where it has none.
    count_images
        Whether Images in Acquisition casts doubt.
    """

    rule: str
    max_wait_s: float
    association_hold_s: float
    suspect: Literal["process", "hold"]
    quiet_s: float | None = None
    count_images: bool = True


def policy_of(completion: Completion, rules: Sequence[CompletionRule], sender: Sender) -> Policy:
    """Return the policy of a sender's series."""
    rule = next((rule for rule in rules if fits(rule, sender)), None)
    if rule is None:
        return Policy("", completion.max_wait_s, completion.association_hold_s, completion.suspect)
    return Policy(
        rule.name,
        completion.max_wait_s if rule.max_wait_s is None else rule.max_wait_s,
        completion.association_hold_s if rule.association_hold_s is None else rule.association_hold_s,
        rule.suspect or completion.suspect,
        rule.quiet_s,
        rule.count_images,
    )


def fits(rule: CompletionRule, sender: Sender) -> bool:
    """Return whether all that a rule asks for holds; AE titles and modalities are compared as they are written."""
    asked = ((rule.called_ae, sender.called_ae), (rule.peer, sender.peer), (rule.modality, sender.modality))
    return all(wanted is None or wanted == found for wanted, found in asked)


def sender_of(database: Database, series_id: int) -> Sender:
    """Return who sent a series last."""
    row = database.execute(
        "SELECT a.called_ae, a.peer, series.modality FROM association_series AS fed"
        " JOIN associations AS a ON a.id = fed.association_id JOIN series ON series.id = fed.series_id"
        " WHERE fed.series_id = ? ORDER BY fed.last_arrival DESC LIMIT 1",
        (series_id,),
    ).fetchone()
    return Sender(*row) if row is not None else Sender()
