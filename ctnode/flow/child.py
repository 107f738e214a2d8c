"""The child of a job: runs the pipeline on one revision, in a process that may be stopped at any moment.

The order comes as one JSON object on standard input; the answer goes line by line to standard output: ``{"step": ...}``
for each step, ``{"report": ...}`` at the end, ``{"storage": ...}`` when files cannot be written, or ``{"error": ...}``
with the kind and place of a fault, never with a value out of a data set.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ctnode.config import Log, Outputs, Pipeline
from ctnode.ops import log
from ctnode.ops.role import die_with_parent

# Not the fault of the series: the job waits until the storage takes files again.
STORAGE_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Carry out one order and return the report with its outputs."""
    from ctnode.flow.pipeline import process_series

    report = process_series(
        [Path(path) for path in order["files"]],
        study=order["study"],
        series=order["series"],
        revision=order["revision"],
        made_at=datetime.fromtimestamp(order["made_at"], UTC),
        out=Path(order["out"]),
        settings=Pipeline.model_validate(order["pipeline"]),
        on_step=lambda step: _say({"step": step}),
        wanted=Outputs.model_validate(order["wanted"]),
    )
    return {"report": report.as_json(), "outputs": list(report.outputs)}


def main() -> int:
    """Read the order, run it, answer."""
    order = json.load(sys.stdin)
    die_with_parent(order["parent"])
    log.configure(Log(level="error"), role="child")
    answers = os.dup(sys.stdout.fileno())
    # Decoders print what they like; only our answers may reach the worker.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.stdout = os.fdopen(answers, "w")
    try:
        _say(run(order))
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            _say({"error": _place(error)})
            return 1
        _say({"storage": os.strerror(error.errno)})
        return 1
    except MemoryError:
        _say({"error": "out of memory"})
        return 1
    except Exception as error:  # noqa: BLE001 - whatever it is, it hurts only this job and is told to the worker
        _say({"error": _place(error)})
        return 1
    return 0


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _place(error: Exception) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "ctnode" in frame.filename]
    where = f" in {Path(frames[-1].filename).stem}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


if __name__ == "__main__":
    raise SystemExit(main())
