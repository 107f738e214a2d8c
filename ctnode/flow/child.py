"""The child of a job: runs the pipeline on one revision, in a process that may be stopped at any moment.

The order comes as one JSON object on standard input; the answer goes line by line to standard output: ``{"step": ...}``
for each step, ``{"reports": [...]}`` with one for each volume at the end, ``{"storage": ...}`` when files cannot be
written, or ``{"error": ...}`` with the kind and place of a fault, never with a value out of a data set.

With arguments, the number of the parent and the outputs that are wanted, it serves ``ctnode.flow.workshop``: pickled
orders, and for each the same answers but ``{"reports": [...]}``, until its standard input ends.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ctnode.config import Log, LungMask, Outputs, Pipeline
from ctnode.ops import log
from ctnode.ops.process import reset_peak
from ctnode.ops.role import die_with_parent
from ctnode.words import VolumeReport

# Not the fault of the series: the job waits until the storage takes files again.
STORAGE_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Carry out one order and return the reports with their outputs."""
    from ctnode.flow.pipeline import process_series

    reports = process_series(
        [Path(path) for path in order["files"]],
        study=order["study"],
        series=order["series"],
        revision=order["revision"],
        made_at=datetime.fromtimestamp(order["made_at"], UTC),
        out=Path(order["out"]),
        settings=Pipeline.model_validate(order["pipeline"]),
        on_step=lambda step: _say({"step": step}),
        wanted=Outputs.model_validate(order["wanted"]),
        lungs=LungMask.model_validate(order["lungs"]),
    )
    return _answer(reports)


def _answer(reports: Sequence[VolumeReport]) -> dict[str, Any]:
    return {"reports": [{**report.as_json(), "outputs": list(report.outputs)} for report in reports]}


def serve(parent: int, wanted: Outputs) -> int:
    """Carry out pickled orders until there are no more; a fault that is not of the storage ends only its order."""
    from ctnode.flow.workshop import read_order

    die_with_parent(parent)
    _keep_answers_apart()
    _preload(wanted)
    from ctnode.flow.pipeline import process_frames

    while (order := read_order(sys.stdin.buffer)) is not None:
        job = dataclasses.replace(order.job, on_step=lambda step: _say({"step": step}))
        reset_peak()
        try:
            _say(_answer(process_frames(order.frames, order.faults, job)))
        except MemoryError:
            _say({"error": "out of memory", "code": "OUT_OF_MEMORY"})
        except OSError as error:
            is_storage = error.errno in STORAGE_ERRORS
            _say({"storage": os.strerror(error.errno or 0)} if is_storage else {"error": log.place(error)})
        except Exception as error:  # noqa: BLE001 - whatever it is, it hurts only this series
            _say({"error": log.place(error)})
    return 0


def _preload(wanted: Outputs) -> None:
    """Import what the first order will need, while the parent still reads headers."""
    from ctnode.flow import products

    products.preload(wanted)


def _keep_answers_apart() -> None:
    log.configure(Log(level="error"), role="child")
    answers = os.dup(sys.stdout.fileno())
    # Decoders print what they like; only our answers may reach the parent.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.stdout = os.fdopen(answers, "w")


def main() -> int:
    """Read the order, run it, answer."""
    if len(sys.argv) > 1:
        return serve(int(sys.argv[1]), Outputs.model_validate_json(sys.argv[2]))
    order = json.load(sys.stdin)
    die_with_parent(order["parent"])
    _keep_answers_apart()
    try:
        _say(run(order))
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            _say({"error": log.place(error)})
            return 1
        _say({"storage": os.strerror(error.errno)})
        return 1
    except MemoryError:
        _say({"error": "out of memory"})
        return 1
    except Exception as error:  # noqa: BLE001 - whatever it is, it hurts only this job and is told to the worker
        _say({"error": log.place(error)})
        return 1
    return 0


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
