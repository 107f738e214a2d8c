"""Command sets and the messages they begin."""

from __future__ import annotations

import struct
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.dsutils import decode

from ctnode.wire.command import Command, Malformed, command_pdus, parse_command, store_response
from ctnode.wire.messages import FOREIGN_LIMIT_BYTES, Assembler, TooMuch
from tests.wire_peers import command_set, pdv, store_command, uid

pytestmark = pytest.mark.unit


def test_a_store_request() -> None:
    command = parse_command(store_command(uid(5).encode(), message_id=513, move_originator=b" MOVER "))
    assert (command.field, command.message_id, command.has_data_set) == (1, 513, True)
    assert (command.sop_instance, command.move_originator, command.move_message_id) == (uid(5).encode(), "MOVER", 7)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        command_set({0x0100: 1, 0x0110: 1}),
        command_set({0x0100: 1, 0x0800: 1}),
        command_set({0x0110: 1, 0x0800: 1}),
        command_set({0x0100: b"\1\0\0\0", 0x0110: 1, 0x0800: 1}),
        store_command(b"1.2")[:-1],
        struct.pack("<HHL", 8, 0x18, 0),
        struct.pack("<HHL", 0, 0x0100, 0xFFFFFFFF),
    ],
)
def test_what_does_not_say_what_it_is(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse_command(data)


@given(st.binary(max_size=200))
def test_noise_is_malformed_and_nothing_else(data: bytes) -> None:
    try:
        parse_command(data)
    except Malformed:
        return


@given(
    name=st.binary(max_size=70),
    status=st.integers(0, 0xFFFF),
    comment=st.text(max_size=80),
    limit=st.integers(0, 300),
    context_id=st.integers(1, 255),
)
def test_pynetdicom_reads_the_response_whatever_the_limit_of_the_peer(
    name: bytes, status: int, comment: str, limit: int, context_id: int
) -> None:
    command = Command(1, 77, True, b"1.2.840.10008.5.1.4.1.1.2", name, "", 0)
    joined, stream = b"", command_pdus(context_id, store_response(command, status, comment), limit)
    while stream:
        kind, _, length = struct.unpack_from(">BBL", stream)
        size, context, control = struct.unpack_from(">LBB", stream, 6)
        assert (kind, context, size) == (4, context_id, length - 4)
        assert limit <= 6 or length <= limit
        joined += stream[12 : 6 + length]
        stream = stream[6 + length :]
        assert control == (1 if stream else 3)
    answer = decode(BytesIO(joined), True, True)
    assert (answer.CommandField, answer.MessageIDBeingRespondedTo, answer.Status) == (0x8001, 77, status)
    assert answer.CommandDataSetType == 0x0101
    assert len(answer.get("ErrorComment", "") or "") <= 64


class Recorder:
    """A store that counts."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def begin(self, command: Command, context_id: int) -> None:
        self.events.append(("begin", command.message_id, context_id))

    def write(self, fragment: memoryview) -> None:
        self.events.append(bytes(fragment))

    def finish(self) -> tuple[int, str]:
        self.events.append("finish")
        return 0, ""

    def answer(self, context_id: int, command: Command, status: int, comment: str) -> None:
        self.events.append(("answer", context_id, command.message_id, status, comment))

    def foreign(self, context_id: int, data: bytes) -> None:
        self.events.append(("foreign", context_id, data))

    def assembler(self) -> Assembler:
        return Assembler(self, lambda number: number in (1, 3), self.answer, self.foreign)


def test_a_store_is_begun_written_finished_and_answered() -> None:
    recorder = Recorder()
    assembler = recorder.assembler()
    command = store_command(b"1.2")
    assembler.take(memoryview(pdv(3, 1, command[:7])))
    assert assembler.in_message
    assembler.take(memoryview(pdv(3, 3, command[7:]) + pdv(3, 0, b"ab") + pdv(3, 2, b"cd")))
    assert recorder.events == [("begin", 1, 3), b"ab", b"cd", "finish", ("answer", 3, 1, 0, "")]
    assert not assembler.in_message


def test_other_messages_go_to_pynetdicom_but_not_without_end() -> None:
    recorder = Recorder()
    assembler = recorder.assembler()
    command = command_set({0x0100: 0x0130, 0x0110: 1, 0x0800: 1})
    assembler.take(memoryview(pdv(1, 3, command) + pdv(1, 0, b"ab") + pdv(1, 2, b"")))
    assert recorder.events == [("foreign", 1, b"\3" + command), ("foreign", 1, b"\0ab"), ("foreign", 1, b"\2")]
    assembler.take(memoryview(pdv(1, 3, command)))
    piece = memoryview(pdv(1, 0, bytes(1 << 20)))
    for _ in range(FOREIGN_LIMIT_BYTES // (1 << 20)):
        assembler.take(piece)
    with pytest.raises(TooMuch):
        assembler.take(piece)


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_noise_in_pdvs_is_malformed_and_nothing_else(bodies: list[bytes]) -> None:
    assembler = Recorder().assembler()
    for body in bodies:
        try:
            assembler.take(memoryview(body))
        except Malformed:
            return
