"""What the node accepts: presentation contexts, built once and shared by all associations (PS3.8 7.1.1.13)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Final

from pydicom.uid import UID
from pynetdicom.presentation import AllStoragePresentationContexts, PresentationContext, build_context

from ctnode.wire.service_classes import COMMITMENT, SERVICES

_UNCOMPRESSED: Final = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
_LOSSLESS: Final = (
    "1.2.840.10008.1.2.4.57",  # JPEG Lossless, process 14
    "1.2.840.10008.1.2.4.70",  # JPEG Lossless, process 14, selection value 1
    "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000, lossless only
    "1.2.840.10008.1.2.4.201",  # HTJ2K, lossless only
    "1.2.840.10008.1.2.4.202",  # HTJ2K with RPCL, lossless only
    "1.2.840.10008.1.2.5",  # RLE
)
_LOSSY: Final = (
    "1.2.840.10008.1.2.4.50",  # JPEG baseline
    "1.2.840.10008.1.2.4.51",  # JPEG extended
    "1.2.840.10008.1.2.4.81",  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.4.203",  # HTJ2K
)
_BIG_ENDIAN: Final = ("1.2.840.10008.1.2.2",)

# The acceptor's order decides: the first of these that the peer proposed is taken. Deflated is left out: a few hundred
# kilobytes of it become gigabytes.
STORAGE_SYNTAXES: Final = _UNCOMPRESSED + _LOSSLESS + _LOSSY + _BIG_ENDIAN
VERIFICATION_SYNTAXES: Final = _UNCOMPRESSED
SERVICE_SYNTAXES: Final = VERIFICATION_SYNTAXES

# PS3.8 Table 9-18: transfer-syntaxes-not-supported.
_NO_TRANSFER_SYNTAX: Final = 4
_SYNTAXES_SHOWN: Final = 8

Supported = Mapping[str, PresentationContext]


@cache
def supported_contexts() -> Supported:
    """Return the services and all standard storage SOP classes by abstract syntax.

    The objects are shared: negotiation reads them and makes its own results, so no association needs a copy (a deep
    copy of the list costs up to 49 ms for each connection).
    """
    contexts = {uid: build_context(uid, list(SERVICE_SYNTAXES)) for uid in SERVICES}
    # PS3.4 J.2.1: who answers a request of ours on an association of its own proposes itself as SCP.
    contexts[COMMITMENT].scu_role = contexts[COMMITMENT].scp_role = True
    for offered in AllStoragePresentationContexts:
        uid = str(offered.abstract_syntax)
        contexts[uid] = build_context(uid, list(STORAGE_SYNTAXES))
    return MappingProxyType(contexts)


def needed_contexts(
    supported: Supported, proposed: Iterable[PresentationContext], allow: Callable[[str], bool]
) -> list[PresentationContext]:
    """Return those of ``supported`` that a peer proposed and may have, each once."""
    wanted = dict.fromkeys(str(context.abstract_syntax) for context in proposed)
    return [supported[uid] for uid in wanted if uid in supported and allow(uid)]


def refusals(
    supported: Supported, proposed: Iterable[PresentationContext], refused: Collection[PresentationContext]
) -> tuple[tuple[str, str], ...]:
    """Return abstract syntax and reason, in words, of the contexts that a peer did not get."""
    syntaxes = {context.context_id: context.transfer_syntax for context in proposed}
    return tuple(
        (str(context.abstract_syntax), _why(supported, context, syntaxes.get(context.context_id, [])))
        for context in refused
    )


def _why(supported: Supported, context: PresentationContext, proposed: Sequence[UID]) -> str:
    if context.result == _NO_TRANSFER_SYNTAX:
        shown = ", ".join(str(syntax) for syntax in proposed[:_SYNTAXES_SHOWN])
        more = f" and {len(proposed) - _SYNTAXES_SHOWN} more" if len(proposed) > _SYNTAXES_SHOWN else ""
        return f"no transfer syntax in common: {shown}{more}"
    if str(context.abstract_syntax) in supported:
        return "not allowed to this peer"
    return "SOP class not supported"
