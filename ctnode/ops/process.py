"""Processes of this host: who still lives, how much memory one holds, how to end a group."""

from __future__ import annotations

import os
import signal
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def identity(pid: int | None = None) -> str:
    """Return a name of a process that no later process with the same number shares: number and start time."""
    number = os.getpid() if pid is None else pid
    return f"{number}.{_start_ticks(number)}"


def is_alive(name: str) -> bool:
    """Return whether the process of this ``identity`` still lives."""
    number, _, started = name.partition(".")
    return number.isdigit() and _start_ticks(int(number)) == started


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 once it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def end_group(pid: int) -> None:
    """Kill a process and all that it started; ``pid`` leads its own group."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _start_ticks(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    # The name in parentheses may hold anything; fields are counted behind it.
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]
