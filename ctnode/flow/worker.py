"""The ``work`` role: claim a job, run its pipeline in a child within limits, publish, or say what went wrong."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from ctnode.archive import catalog, findings, jobs, outbox, revisions, timeline
from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
from ctnode.config import Config
from ctnode.flow.dispatch import decide_finished, originals_for, results_for
from ctnode.flow.parcels import parcels_of
from ctnode.flow.publish import prepare, publish
from ctnode.ops import log
from ctnode.ops.process import end_group, identity, is_alive, resident_bytes_of_group
from ctnode.ops.role import Role
from ctnode.words import LostLease, NotFound, VolumeStatus

IDLE_S: Final = 0.5
WATCH_S: Final = 0.05
RENEW_S: Final = 15.0
RETRY_S: Final = 1.0
STORAGE_RETRY_S: Final = 15.0

Reload = Callable[[], Config]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How a child ended: its answer, or what went wrong with it or the storage; nothing when we stopped it."""

    answer: dict[str, Any] | None
    fault: str = ""
    is_drained: bool = False
    storage_fault: str = ""


def work(config: Config, role: Role, reload: Reload) -> int:
    """Run jobs until the role stops; a job that runs then is given back uncounted."""
    layout = Layout(config.root, config.results)
    with Database(layout.database) as database:
        database.migrate()
        worker = Worker(config, layout, database, role, reload)
        worker.run()
    return 0


class Worker:
    """The loop of one ``work`` role."""

    def __init__(self, config: Config, layout: Layout, database: Database, role: Role, reload: Reload) -> None:
        self.config = config
        self.layout = layout
        self.database = database
        self.role = role
        self.reload = reload
        self.owner = identity()
        self._held: jobs.Lease | None = None
        self._log: structlog.typing.FilteringBoundLogger = log.get()

    def run(self) -> None:
        """Claim and run, one job at a time."""
        self.role.ready()
        while not self.role.stopping:
            if self.role.reload_wanted:
                self.role.reload_wanted = False
                self.config = self.reload()
            try:
                self._release_dead_owners()
                self._give_back_held()
                log.unbind("job")
                lease = jobs.claim(self.database, self.owner)
                if lease is None:
                    self.role.wait(IDLE_S)
                else:
                    self._held = lease
                    log.bind(job=lease.job_id)
                    self._run_job(lease)
                    self._held = None
            except (LostLease, NotFound) as lost:
                # A series that was forgotten takes its job with it.
                self._log.warning("lease lost", reason=lost.message)
            except (OSError, sqlite3.Error) as error:
                self.database.connection.rollback()
                self._log.error("worker cannot work now", error=type(error).__name__)
                self.role.wait(RETRY_S)
        self.role.draining()

    def _release_dead_owners(self) -> None:
        """Give back at once what a worker of this host held when it was killed; elsewhere the lease has to run out."""
        for (owner,) in self.database.execute(
            "SELECT DISTINCT owner FROM jobs WHERE state IN ('QUEUED', 'RUNNING', 'RETRY') AND state = 'RUNNING'"
        ).fetchall():
            if not is_alive(owner):
                jobs.release_interrupted(self.database, owner)

    def _give_back_held(self) -> None:
        """Give back the job whose end could not be written down; its lease need not run out, nor does it count."""
        if self._held is None:
            return
        try:
            jobs.give_back(self.database, self._held, "its end could not be written down", wait_s=STORAGE_RETRY_S)
        except LostLease:
            # It was written down after all, or somebody took the job away.
            self._log.debug("nothing to give back", job=self._held.job_id)
        self._held = None

    def _run_job(self, lease: jobs.Lease) -> None:
        revision = revisions.get(self.database, lease.revision_id)
        series = catalog.by_id(self.database, revision.series_id)
        final = self.layout.result_directory(series.study, series.uid, series.split, revision.n)
        try:
            folder = prepare(final, below=self.layout.results.parent, job=lease.job_id, attempt=lease.attempt)
        except OSError as error:
            self._wait_for_storage(lease, error.strerror or type(error).__name__)
            return
        order = {
            "parent": os.getpid(),
            "files": [str(self.layout.store / path) for path in revisions.frozen_paths(self.database, revision.id)],
            "study": series.study,
            "series": series.name,
            "revision": revision.n,
            "made_at": revision.verdict_at,
            "out": str(folder),
            "pipeline": self.config.pipeline.model_dump(),
            "wanted": self.config.outputs.model_dump(),
            "lungs": self.config.lungs.model_dump(),
        }
        bound = self._log.bind(job=lease.job_id, series=series.name, revision=revision.n, attempt=lease.attempt)
        bound.info("job began", instances=series.instances)
        began = time.monotonic()
        try:
            outcome = self._watch_child(lease, order)
            if outcome.answer is None:
                # On a full disk its room is what the row about it needs.
                shutil.rmtree(folder, ignore_errors=True)
            if outcome.is_drained:
                jobs.give_back(self.database, lease, "the node stops")
                bound.info("job given back")
            elif outcome.storage_fault:
                self._wait_for_storage(lease, outcome.storage_fault)
            elif outcome.answer is None:
                state = jobs.fail(self.database, lease, outcome.fault)
                bound.error("job failed", reason=outcome.fault, state=str(state))
            else:
                self._publish(lease, revision.id, outcome.answer, folder, final)
                bound.info("job done", status=outcome.answer["reports"][0]["status"], seconds=time.monotonic() - began)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _wait_for_storage(self, lease: jobs.Lease, fault: str) -> None:
        """Give the job back uncounted: a full disk is no fault of the series."""
        jobs.give_back(self.database, lease, f"the storage takes no results: {fault}", wait_s=STORAGE_RETRY_S)
        self._log.error("storage takes no results", job=lease.job_id, error=fault)

    def _watch_child(self, lease: jobs.Lease, order: dict[str, Any]) -> _Outcome:
        """Run the child; end it when it takes too much memory or time, when the lease is lost, or when we stop."""
        limits = self.config.worker
        with _Child(order, self.layout.run) as child:
            began = renewed = time.monotonic()
            while child.process.poll() is None:
                self.role.wait(WATCH_S)
                now = time.monotonic()
                self.role.report(job=lease.job_id, running_s=round(now - began, 1))
                if self.role.stopping:
                    return _Outcome(None, is_drained=True)
                if resident_bytes_of_group(child.process.pid) > limits.memory_mb << 20:
                    return _Outcome(None, f"took more than {limits.memory_mb} MB of memory (worker.memory_mb)")
                if now - began > limits.timeout_s:
                    return _Outcome(None, f"took longer than {limits.timeout_s:g} s (worker.timeout_s)")
                if now - renewed > RENEW_S:
                    jobs.renew(self.database, lease)
                    renewed = now
            self.role.report(job=None)
            return child.outcome()

    def _publish(self, lease: jobs.Lease, revision_id: int, answer: dict[str, Any], folder: Path, final: Path) -> None:
        reports = answer["reports"]
        outputs = [name for report in reports for name in report.pop("outputs")]
        for report in reports:
            report["dir"] = str(final)
        routed = ""
        if self.config.routes:
            revision = revisions.get(self.database, revision_id)
            decision = decide_finished(self.database, self.layout, self.config, revision, reports, folder)
            parcels = results_for(self.config, decision.fired, outputs, folder, final, self.layout.results)
            parcels += originals_for(self.database, revision, decision.fired)
            routed = decision.words()
        else:
            parcels = parcels_of(self.config.targets, outputs, folder, final, self.layout.results)
        aside: list[Path] = []

        def publish_and_post(is_newest: bool) -> None:
            moved = publish(folder, final)
            if moved is not None:
                aside.append(moved)
            findings.record(self.database, revision_id, [findings.Finding.of_report(report) for report in reports])
            if is_newest:
                outbox.post(self.database, revision_id, parcels)
            if routed:
                timeline.note(self.database, revision.series_id, revision.n, "routes", routed)

        words = "; ".join(map(_words, reports))
        jobs.finish(self.database, lease, reports, words, publish_and_post)
        for old in aside:
            shutil.rmtree(old)


class _Child:
    """A running child and its answers; it is dead when the block ends."""

    def __init__(self, order: dict[str, Any], run_directory: Path) -> None:
        self._answers = (run_directory / f"child-{os.getpid()}.out").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ctnode.flow.child"],
            stdin=subprocess.PIPE,
            stdout=self._answers,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        with self.process.stdin as pipe:
            pipe.write(json.dumps(order).encode())

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        end_group(self.process.pid)
        self.process.wait()
        self._answers.close()
        Path(self._answers.name).unlink(missing_ok=True)

    def outcome(self) -> _Outcome:
        """Return the answer of a child that has ended."""
        self._answers.seek(0)
        lines = [json.loads(line) for line in self._answers.read().splitlines() if line.endswith(b"}")]
        steps = [line["step"] for line in lines if "step" in line]
        during = f" during {steps[-1]}" if steps else ""
        last = lines[-1] if lines else {}
        if "reports" in last and self.process.returncode == 0:
            return _Outcome(last)
        if "storage" in last:
            return _Outcome(None, storage_fault=last["storage"])
        if "error" in last:
            return _Outcome(None, f"{last['error']}{during}")
        code = self.process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        return _Outcome(None, f"the child of the job {how}{during}")


def _words(report: dict[str, Any]) -> str:
    codes = ", ".join(issue["code"] for issue in report["issues"])
    lungs = f", lungs {report['lungs']}" if report["status"] != VolumeStatus.REFUSED else ""
    reasons = f" ({'; '.join(report['reasons'])})" if report["reasons"] else ""
    return f"volume {report['status']}{f' [{codes}]' if codes else ''}{lungs}{reasons}"
