"""Presentation contexts read and judged without pynetdicom's checks of each name (PS3.8 9.3.2.2, 9.3.3.2).

DCMTK's storescu proposes 128 contexts of three or four transfer syntaxes by itself. pynetdicom makes and validates each
of these names six times over, 20 ms of one association; here a name is checked once in the life of the process.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from pydicom.uid import UID
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor

from ctnode.wire.command import Malformed

_UID_LIMIT: Final = 64
# More than all standard SOP classes and transfer syntaxes together.
_NAMES_KEPT: Final = 4096
_ACCEPTED: Final = 0x00
_NO_ABSTRACT_SYNTAX: Final = 0x03
_NO_TRANSFER_SYNTAX: Final = 0x04
_RESULT: Final = struct.Struct(">BBHBBBB")
_ITEM: Final = struct.Struct(">BBH")
_RESULT_ITEM: Final = 0x21
_SYNTAX_ITEM: Final = 0x40


@lru_cache(maxsize=_NAMES_KEPT)
def name(raw: bytes) -> UID:
    """Return the UID of a syntax sub-item; empty ones, and such as are no UID but short enough, pass as they are.

    Raises
    ------
    Malformed
        If it is longer than a UID may be or not ASCII.
    """
    text = raw.removesuffix(b"\0")
    if len(text) > _UID_LIMIT or not text.isascii():
        raise Malformed("a syntax of the request is no UID")
    return UID(text.decode("ascii"))


class Context(PresentationContext):
    """A presentation context of names that are UIDs already."""

    def __init__(self, number: int, abstract: UID, transfer: list[UID], result: int | None = None) -> None:
        super().__init__()
        self._context_id = number
        self._abstract_syntax = abstract
        self._transfer_syntax = transfer
        self.result = result
        # What both sides are where nobody negotiates roles.
        self._as_scu, self._as_scp = (None, None) if result is None else (False, result == _ACCEPTED)


def proposed_context(number: int, abstract: bytes, transfer: Iterable[bytes]) -> PresentationContext:
    """Return a context as the peer proposes it.

    Raises
    ------
    Malformed
        If a name cannot be one.
    """
    return Context(number, name(abstract), [uid for uid in dict.fromkeys(map(name, transfer)) if uid])


def negotiate(
    proposed: Sequence[PresentationContext],
    supported: Sequence[PresentationContext],
    roles: Mapping[UID, tuple[bool | None, bool | None]],
) -> tuple[list[PresentationContext], list[Any]]:
    """Return the results by ascending context ID and the answers to proposed roles, as pynetdicom would.

    Parameters
    ----------
    proposed
        What the peer proposes.
    supported
        What it may have, each abstract syntax once; the order of transfer syntaxes is that of preference.
    roles
        Proposed roles (SCU, SCP) by SOP class; contexts of these classes are left to pynetdicom.
    """
    by_class = {context.abstract_syntax: context for context in supported}
    results: list[PresentationContext] = []
    answers: list[Any] = []
    with_roles = [context for context in proposed if context.abstract_syntax in roles]
    if with_roles:
        results, answers = negotiate_as_acceptor(with_roles, list(supported), dict(roles))
    for context in proposed:
        if context.abstract_syntax not in roles:
            results.append(_judge(context, by_class.get(context.abstract_syntax)))
    return sorted(results, key=lambda context: context.context_id or 0), answers


def _judge(proposed: PresentationContext, supported: PresentationContext | None) -> Context:
    number, abstract = proposed.context_id or 0, proposed.abstract_syntax or UID("")
    wanted = proposed.transfer_syntax
    if supported is None:
        return Context(number, abstract, wanted[:1], _NO_ABSTRACT_SYNTAX)
    for syntax in supported.transfer_syntax:
        if syntax in wanted:
            return Context(number, abstract, [syntax], _ACCEPTED)
    return Context(number, abstract, wanted[:1], _NO_TRANSFER_SYNTAX)


class ResultItems:
    """The results as items of an A-ASSOCIATE-AC, written at once; stands among pynetdicom's items."""

    def __init__(self, contexts: Iterable[PresentationContext]) -> None:
        self._encoded = b"".join(_result_item(context) for context in contexts)

    def __len__(self) -> int:
        return len(self._encoded)

    def encode(self) -> bytes:
        """Return the items."""
        return self._encoded


def _result_item(context: PresentationContext) -> bytes:
    syntax = context.transfer_syntax[0].encode() if context.transfer_syntax else b""
    inner = _ITEM.pack(_SYNTAX_ITEM, 0, len(syntax)) + syntax
    return _RESULT.pack(_RESULT_ITEM, 0, 4 + len(inner), context.context_id or 0, 0, context.result or 0, 0) + inner
