"""The keys of de-identification: what leaves for external destinations is built anew under a profile."""

from __future__ import annotations

from pydantic import Field

from ctnode.config.fields import Name, Section


class Deidentification(Section):
    """One de-identification profile (PS3.15 Annex E) for targets with external = true."""

    name: Name = Field(description="name of the profile, as targets.deidentify says it")
    project: Name = Field(description="project, with which subject IDs begin; another project has other IDs and UIDs")
    key_file: str = Field(description="file of at least 32 random bytes; who has it can link subjects again")
