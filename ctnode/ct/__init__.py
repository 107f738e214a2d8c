"""The science: arrays in, arrays out; no database, no network."""

from ctnode.ct.arrays import normalise

__all__ = ["normalise"]
