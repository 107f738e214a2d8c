"""From P-DATA to messages: a C-STORE goes piece by piece to whoever keeps it, everything else to pynetdicom."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, Protocol

from ctnode.wire.command import (
    C_STORE_RQ,
    COMMAND_LIMIT_BYTES,
    UNEXPECTED_PDU,
    Command,
    Malformed,
    TooMuch,
    parse_command,
)

# Requests that are no C-STORE carry lists of references at most; they are held in memory.
FOREIGN_LIMIT_BYTES: Final = 16 << 20

_PDV_HEADER: Final = struct.Struct(">LBB")
_IS_COMMAND: Final = 1
_IS_LAST: Final = 2


class Store(Protocol):
    """Where C-STORE requests go, one after the other."""

    def begin(self, command: Command, context_id: int) -> None:
        """Begin one instance."""

    def write(self, fragment: memoryview) -> None:
        """Take a piece of its data set; the piece is valid during the call only."""

    def finish(self) -> tuple[int, str]:
        """End the instance and return status and error comment; success means kept."""


class Assembler:
    """Puts the fragments of one association together.

    Parameters
    ----------
    store
        Takes C-STORE requests.
    has_context
        Whether a presentation context ID was accepted.
    answer
        Sends the response of a C-STORE: context ID, command, status, comment.
    foreign
        Takes fragments of other messages as pynetdicom wants them: context ID and control byte with data.
    """

    def __init__(
        self,
        store: Store,
        has_context: Callable[[int], bool],
        answer: Callable[[int, Command, int, str], None],
        foreign: Callable[[int, bytes], None],
    ) -> None:
        self._store = store
        self._has_context = has_context
        self._answer = answer
        self._foreign = foreign
        self._fragments = bytearray()
        self._context_id = 0
        self._command: Command | None = None
        self._foreign_bytes = 0

    @property
    def in_message(self) -> bool:
        """Return whether a message has begun and not ended."""
        return bool(self._context_id)

    def take(self, body: memoryview) -> None:
        """Take the presentation data values of one P-DATA-TF PDU (PS3.8 9.3.5.1, Annex E).

        Raises
        ------
        Malformed
            If they cannot be what they say: the association has to be aborted.
        TooMuch
            If the peer goes on with what is refused already.
        """
        position, end = 0, len(body)
        if not end:
            raise Malformed("the PDU holds nothing")
        while position < end:
            if end - position < _PDV_HEADER.size:
                raise Malformed("a PDV is cut off")
            length, context_id, control = _PDV_HEADER.unpack_from(body, position)
            if length < 2 or length > end - position - 4:
                raise Malformed("the length of a PDV cannot be")
            fragment = body[position + _PDV_HEADER.size : position + 4 + length]
            position += 4 + length
            if context_id != self._context_id or not context_id:
                if self._context_id or not self._has_context(context_id):
                    raise Malformed("a PDV has a presentation context that it may not have")
                self._context_id = context_id
            command = self._command
            if control & _IS_COMMAND:
                self._take_command(fragment, is_last=bool(control & _IS_LAST))
            elif command is None:
                raise Malformed("data before a command", reason=UNEXPECTED_PDU)
            elif command.field == C_STORE_RQ:
                if fragment:
                    self._store.write(fragment)
                if control & _IS_LAST:
                    self._finish_store(command)
            else:
                self._take_foreign_data(fragment, is_last=bool(control & _IS_LAST))

    def _take_command(self, fragment: memoryview, *, is_last: bool) -> None:
        if self._command is not None:
            raise Malformed("a command inside the data set of another", reason=UNEXPECTED_PDU)
        if len(self._fragments) + len(fragment) > COMMAND_LIMIT_BYTES:
            raise Malformed("the command set is too long")
        self._fragments += fragment
        if not is_last:
            return
        self._command = command = parse_command(self._fragments)
        if command.field == C_STORE_RQ:
            self._store.begin(command, self._context_id)
            if not command.has_data_set:
                self._finish_store(command)
        else:
            self._foreign_bytes = 0
            self._foreign(self._context_id, b"\x03" + bytes(self._fragments))
            if not command.has_data_set:
                self._reset()

    def _take_foreign_data(self, fragment: memoryview, *, is_last: bool) -> None:
        self._foreign_bytes += len(fragment)
        if self._foreign_bytes > FOREIGN_LIMIT_BYTES:
            raise TooMuch("the data set of a request is too large")
        self._foreign(self._context_id, (b"\x02" if is_last else b"\x00") + bytes(fragment))
        if is_last:
            self._reset()

    def _finish_store(self, command: Command) -> None:
        context_id = self._context_id
        status, comment = self._store.finish()
        self._reset()
        self._answer(context_id, command, status, comment)

    def _reset(self) -> None:
        self._context_id = 0
        self._command = None
        self._fragments.clear()
