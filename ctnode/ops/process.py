"""Processes of this host: who still lives, how much memory one holds, how to end a group."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def identity(pid: int | None = None) -> str:
    """Return a name of a process that no later process with the same number shares: number and start time."""
    number = os.getpid() if pid is None else pid
    return f"{number}.{_start_ticks(number)}"


def is_alive(name: str) -> bool:
    """Return whether the process of this ``identity`` still lives.

    Of a process in another sandbox (ProtectProc= with PrivateUsers=) /proc shows nothing: there a signal that this
    user may send counts as life.
    """
    number, _, started = name.partition(".")
    if not number.isdigit():
        return False
    if not Path(f"/proc/{number}").exists():
        return _takes_signals(int(number), foreign=False)
    return _start_ticks(int(number)) == started


def exists(pid: int) -> bool:
    """Return whether there is a process of this number, seen or not."""
    return _takes_signals(pid, foreign=True)


def _takes_signals(pid: int, *, foreign: bool) -> bool:
    """Return whether the process exists; ``foreign`` is the answer for one of another user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return foreign
    return True


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 once it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def resident_bytes_of_group(leader: int) -> int:
    """Return the resident memory of a process and of all that it started, in bytes; shared pages count once.

    Of the others only what is theirs alone counts: libraries and files that are mapped lie in memory once.
    """
    total = resident_bytes(leader)
    waiting = _children(leader)
    while waiting:
        child = waiting.pop()
        waiting += _children(child)
        try:
            fields = Path(f"/proc/{child}/statm").read_text(encoding="ascii").split()
            total += (int(fields[1]) - int(fields[2])) * PAGE_BYTES
        except (OSError, IndexError, ValueError):  # it has ended meanwhile
            continue
    return total


def _children(pid: int) -> list[int]:
    try:
        # A process may be started by any thread.
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text(encoding="ascii").split()]
    except (OSError, ValueError):
        return []


def peak_bytes() -> int:
    """Return the largest resident memory of this process since its start, or since ``reset_peak``."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak() -> None:
    """Let ``peak_bytes`` count from now on, where the kernel allows it."""
    with contextlib.suppress(OSError):
        # proc(5): 5 resets the peak resident set size to the current one.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


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
