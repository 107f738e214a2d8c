"""Decode in several processes where threads cannot help: most decoders hold the interpreter while they work.

A helper is this module as a program: frames come pickled on its standard input (from us, so that is safe), pixels go
raw to its standard output (a decoder may have damaged it, so nothing of that is unpickled). It ends with its input.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from ctnode.ct.decode import Stored, stored_values
from ctnode.ct.source import Frame
from ctnode.words import Refusal

Decode = Callable[[Frame], Stored]

_LENGTH: Final = struct.Struct("<Q")
# What an answer is, and how many bytes follow.
_ANSWER: Final = struct.Struct("<cQ")
_PIXELS: Final = b"p"
_REFUSED: Final = b"r"

# Nanoseconds a pixel, measured with noise, of the decoders that do not let other threads run (RLE does).
_COST_NS: Final = {
    "1.2.840.10008.1.2.4.50": 10.0,
    "1.2.840.10008.1.2.4.51": 15.0,
    "1.2.840.10008.1.2.4.57": 13.0,
    "1.2.840.10008.1.2.4.70": 13.0,
    "1.2.840.10008.1.2.4.80": 25.0,
    "1.2.840.10008.1.2.4.81": 25.0,
    "1.2.840.10008.1.2.4.90": 140.0,
    "1.2.840.10008.1.2.4.91": 140.0,
    "1.2.840.10008.1.2.4.201": 60.0,
    "1.2.840.10008.1.2.4.202": 60.0,
    "1.2.840.10008.1.2.4.203": 60.0,
}


@contextmanager
def decoder(frames: Sequence[Frame], processes: int, *, least_work_s: float = 2.0) -> Iterator[Decode]:
    """Give a function like ``stored_values`` that ``processes`` threads may call at once.

    Parameters
    ----------
    frames
        What will be decoded.
    processes
        How many frames at once; 1 or less decodes here.
    least_work_s
        Less work than this, by a rough estimate, does not pay for starting processes.

    Raises
    ------
    Refusal
        From the function: codes of ``stored_values``, and ``CRASHED`` if a decoder took its process with it.
    """
    work_s = sum(_COST_NS.get(frame.transfer_syntax, 0.0) * frame.rows * frame.columns for frame in frames) / 1e9
    if processes < 2 or work_s < least_work_s:
        yield stored_values
        return
    helpers = [_Helper() for _ in range(min(processes, len(frames)))]
    free: SimpleQueue[_Helper] = SimpleQueue()
    for helper in helpers:
        free.put(helper)

    def decode(frame: Frame) -> Stored:
        helper = free.get()
        try:
            return helper.ask(frame)
        finally:
            free.put(helper)

    try:
        yield decode
    finally:
        for helper in helpers:
            helper.end()


class _Helper:
    """One process that decodes one frame after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ctnode.ct.parallel"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def ask(self, frame: Frame) -> Stored:
        """Return the stored values of ``frame``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = pickle.dumps(frame)
        try:
            self._process.stdin.write(_LENGTH.pack(len(order)) + order)
            self._process.stdin.flush()
            kind, length = _ANSWER.unpack(self._process.stdout.read(_ANSWER.size))
            if kind == _REFUSED:
                message, code, hint = json.loads(self._process.stdout.read(length))
                raise Refusal(message, code=code, hint=hint)
            content = self._process.stdout.read(length)
            values: npt.NDArray[Any] = np.frombuffer(content, dtype=np.dtype(np.int16 if frame.signed else np.uint16))
            stored: Stored = values.reshape(frame.rows, frame.columns)
        except (OSError, struct.error, ValueError):
            raise Refusal(
                f"the process that decoded {frame.name} ended", code="CRASHED", hint="its decoder does not survive it"
            ) from None
        return stored

    def end(self) -> None:
        """Stop the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # it died before it had read its order
                continue


def serve(orders: BinaryIO, answers: BinaryIO) -> None:
    """Answer until there are no more orders."""
    while len(head := orders.read(_LENGTH.size)) == _LENGTH.size:
        frame = pickle.loads(orders.read(_LENGTH.unpack(head)[0]))  # noqa: S301 - written by our own parent
        try:
            content = stored_values(frame).tobytes()
            kind = _PIXELS
        except Refusal as refusal:
            content = json.dumps([refusal.message, refusal.code, refusal.hint]).encode()
            kind = _REFUSED
        answers.write(_ANSWER.pack(kind, len(content)) + content)
        answers.flush()


def main() -> None:
    """Serve on standard input and output; what decoders print goes nowhere."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
