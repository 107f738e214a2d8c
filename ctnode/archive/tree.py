"""Sequences of a data set, read by name without a parser that can be hung: the lists of requests (PS3.5 7.5).

Only the sequences that are named are gone into; all else is skipped by its length, and depth and number are limited.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final

from ctnode.archive import elements
from ctnode.archive.elements import (
    HEADER_BYTES,
    ITEM,
    ITEM_END,
    SEQUENCE_END,
    UNDEFINED,
    VALUE_LIMIT_BYTES,
    Buffer,
    element_at,
    is_unknown,
    skip_undefined,
)
from ctnode.words import BadInstance

# A request lists instances in series in steps: nothing that is named lies deeper.
DEPTH_LIMIT: Final = 6
ELEMENT_LIMIT: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class Item:
    """A data set or an item of a sequence: raw values and items by tag."""

    values: dict[int, bytes] = field(default_factory=dict)
    sequences: dict[int, tuple[Item, ...]] = field(default_factory=dict)

    def text(self, tag: int) -> str:
        """Return a value without its padding; empty where there is none."""
        return self.values.get(tag, b"").decode("latin-1").strip(" \0")

    def items(self, tag: int) -> tuple[Item, ...]:
        """Return the items of a sequence; none where there is none."""
        return self.sequences.get(tag, ())


def read_tree(data: Buffer, transfer_syntax: str, values: AbstractSet[int], sequences: AbstractSet[int]) -> Item:
    """Read the named values and sequences of a whole data set, at each level where they stand.

    Raises
    ------
    BadInstance
        If the bytes are no data set, end too early, nest too deep or hold too many elements.
    """
    reader = _Reader(data, elements.syntax_of(transfer_syntax), values, sequences)
    return reader.level(0, len(data), is_delimited=False, depth=0)[0]


class _Reader:
    """One pass over one data set."""

    def __init__(
        self, data: Buffer, syntax: elements.Syntax, values: AbstractSet[int], sequences: AbstractSet[int]
    ) -> None:
        self._data = data
        self._syntax = syntax
        self._values = values
        self._sequences = sequences
        self._left = ELEMENT_LIMIT

    def level(self, position: int, end: int, *, is_delimited: bool, depth: int) -> tuple[Item, int]:
        """Read one data set or item up to its end or its delimiter; return the position behind it."""
        item = Item()
        while end - position >= HEADER_BYTES:
            self._left -= 1
            if self._left < 0:
                raise BadInstance(f"more than {ELEMENT_LIMIT} elements")
            tag, length, value = element_at(self._data, position, self._syntax)
            if tag == ITEM_END and is_delimited:
                return item, value
            if tag in self._sequences:
                item.sequences[tag], position = self._items(value, end, length, depth + 1)
            elif length == UNDEFINED:
                unknown = is_unknown(self._data, position, self._syntax)
                position, self._left = skip_undefined(self._data, value, self._syntax, self._left, unknown=unknown)
            else:
                position = value + length
                if tag in self._values:
                    item.values[tag] = bytes(self._data[value : min(position, value + VALUE_LIMIT_BYTES)])
        if is_delimited or position != end:
            raise BadInstance("the data set ends inside an element")
        return item, position

    def _items(self, position: int, end: int, length: int, depth: int) -> tuple[tuple[Item, ...], int]:
        if depth > DEPTH_LIMIT:
            raise BadInstance(f"sequences are nested deeper than {DEPTH_LIMIT}")
        stop = end if length == UNDEFINED else position + length
        if stop > end:
            raise BadInstance("a sequence is longer than the data set")
        found: list[Item] = []
        while stop - position >= HEADER_BYTES:
            tag, size, inside = element_at(self._data, position, self._syntax)
            if tag == SEQUENCE_END and length == UNDEFINED:
                return tuple(found), inside
            is_delimited = size == UNDEFINED
            if tag != ITEM or (not is_delimited and inside + size > stop):
                raise BadInstance("a sequence holds something that is no item")
            item, position = self.level(
                inside, stop if is_delimited else inside + size, is_delimited=is_delimited, depth=depth
            )
            found.append(item)
        if length == UNDEFINED or position != stop:
            raise BadInstance("a sequence does not end")
        return tuple(found), position
