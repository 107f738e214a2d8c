"""The keys of one rule of completion: for whose series which patience holds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from pydantic import Field

from ctnode.config.fields import AeTitle, Modality, Name, Seconds, Section
from ctnode.words import ConfigError


class CompletionRule(Section):
    """One rule of completion: the first that fits a series is its policy, what it leaves out is as without it."""

    name: Name = Field(description="name of the rule in `ctnode series why`")
    called_ae: AeTitle | None = Field(None, description="called AE title it is for; default: any")
    peer: Name | None = Field(None, description="name in [[peers]] of the sender it is for; default: any")
    modality: Modality | None = Field(None, description="modality of the series it is for; default: any")
    quiet_s: Seconds | None = Field(
        None, description="quiet time; default: that of the peer, of the called AE, of [completion], in this order"
    )
    max_wait_s: Seconds | None = Field(None, description="longest wait; default: that of [completion]")
    association_hold_s: Seconds | None = Field(
        None,
        description="seconds without a new instance after which an open association no longer holds a series; default:"
        " that of [completion]. For peers that keep associations open and busy all day",
    )
    suspect: Literal["process", "hold"] | None = Field(
        None, description="what happens to a SUSPECT series: process or hold; default: that of [completion]"
    )
    count_images: bool = Field(
        default=True, description="let Images in Acquisition cast doubt; false for scanners that do not count in images"
    )

    def shadows(self, other: CompletionRule) -> bool:
        """Return whether this rule fits every series that the other one fits."""
        conditions = ((self.called_ae, other.called_ae), (self.peer, other.peer), (self.modality, other.modality))
        return all(mine is None or mine == its for mine, its in conditions)


def check_rules(rules: Sequence[CompletionRule], peers: Collection[str]) -> None:
    """Check that each rule can be reached and names a peer that there is.

    Raises
    ------
    ConfigError
        Naming the rule and what stands in its way.
    """
    for place, rule in enumerate(rules):
        if rule.peer is not None and rule.peer not in peers:
            raise ConfigError(
                f"completion_rules.peer: {rule.name} names {rule.peer}, which is not in [[peers]]",
                hint=f"known: {', '.join(sorted(peers)) or 'none'}",
            )
        before = next((one for one in rules[:place] if one.shadows(rule)), None)
        if before is not None:
            raise ConfigError(
                f"completion_rules.name: {rule.name} is never reached, {before.name} before it takes all of its series",
                hint="the first that fits counts; put the narrower one first",
            )
