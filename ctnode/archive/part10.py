"""The file meta information that the node writes before a data set (PS3.10 7.1)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from ctnode import __version__
from ctnode.archive.header import PREAMBLE_BYTES

# 2.25 + UUIDv5 of the project's name: fixed for all versions (PS3.5 B.2).
IMPLEMENTATION_CLASS_UID: Final = "2.25.26808161602514325334598499648772194757"
DIGEST_BYTES: Final = 32
IMPLEMENTATION_VERSION: Final = f"CTNODE_{__version__}"[:16]


@dataclass(frozen=True, slots=True)
class Opened:
    """How an association began.

    Parameters
    ----------
    door
        ``network``, ``get``, ``import`` or ``inbox``.
    calling_ae, called_ae
        AE titles; empty for files.
    peer_address, own_address
        ``address:port``; ``file:<door>`` for files.
    accepted, refused
        Presentation contexts as ``(abstract syntax, transfer syntax)`` and ``(abstract syntax, reason)``.
    peer
        Its name in ``[[peers]]``, if it has one.
    is_tls
        Whether it came by TLS.
    """

    door: str
    calling_ae: str
    called_ae: str
    peer_address: str
    own_address: str
    accepted: tuple[tuple[str, str], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    peer: str = ""
    is_tls: bool = False


@dataclass(frozen=True, slots=True)
class MetaTemplate:
    """The file meta of all instances that one presentation context of an association brings.

    Parameters
    ----------
    opened
        How the association began.
    transfer_syntax
        That of the context.
    """

    opened: Opened
    transfer_syntax: str
    _tail: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        opened = self.opened
        tail = b"".join(
            (
                _element(0x0010, b"UI", self.transfer_syntax.encode("latin-1")),
                _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode()),
                _element(0x0013, b"SH", IMPLEMENTATION_VERSION.encode()),
                *(
                    _element(tag, b"AE", title.encode("latin-1", "replace"))
                    for tag, title in (
                        (0x0016, opened.calling_ae),
                        (0x0017, opened.calling_ae),
                        (0x0018, opened.called_ae),
                    )
                    if title
                ),
                _element(0x0026, b"UR", opened.peer_address.encode()),
                _element(0x0027, b"UR", opened.peer_address.encode()),
                _element(0x0028, b"UR", opened.own_address.encode()),
                _element(0x0100, b"UI", IMPLEMENTATION_CLASS_UID.encode()),
                _element(0x0102, b"OB", bytes(DIGEST_BYTES)),
            )
        )
        object.__setattr__(self, "_tail", tail)

    def fill(self, sop_class: str, sop_instance: str) -> bytes:
        """Return preamble and file meta (PS3.10 7.1); its last 32 bytes are room for the digest."""
        names = _element(0x0002, b"UI", sop_class.encode("latin-1")) + _element(
            0x0003, b"UI", sop_instance.encode("latin-1")
        )
        length = _element(0x0000, b"UL", struct.pack("<L", len(_VERSION) + len(names) + len(self._tail)))
        return b"".join((_MAGIC, length, _VERSION, names, self._tail))


def _element(element: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b"\0" if vr in {b"UI", b"OB"} else b" "
    if vr in {b"OB", b"UR"}:
        return struct.pack("<HH2sHL", 0x0002, element, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 0x0002, element, vr, len(value)) + value


_MAGIC: Final = bytes(PREAMBLE_BYTES) + b"DICM"
_VERSION: Final = _element(0x0001, b"OB", b"\0\1")
