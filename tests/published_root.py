"""A root with a small chest and its published results, and the page of it as an application or a real server."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import uvicorn
from starlette.types import ASGIApp

from ctnode.archive import catalog, findings, jobs, revisions
from ctnode.archive.header import read_meta
from ctnode.config import Config
from ctnode.ct.grid import Grid
from ctnode.ct.phantom import chest
from ctnode.ct.phantom_dicom import Edit, write_series
from ctnode.flow.pipeline import process_series
from ctnode.web.app import make_app
from ctnode.web.context import make_node
from tests.archive_root import Root, opened

STUDY = "1.2.826.0.1.3680043.8.498.9"
SERIES = "1.2.826.0.1.3680043.8.498.9.1"


class PublishedRoot(Root):
    """A root that takes DICOM files and publishes what the pipeline makes of them."""

    def bring(self, *paths: Path) -> None:
        """Bring files through the front door and settle them."""
        with self.spool.open_association(opened()) as journal:
            for path in paths:
                data = path.read_bytes()
                meta = read_meta(data)
                assert meta is not None
                incoming = journal.receive(
                    transfer_syntax=meta.transfer_syntax, sop_class=meta.sop_class, sop_instance=meta.sop_instance
                )
                incoming.write(data[meta.dataset_start :])
                incoming.commit()
        self.settle()

    def process(self, series_id: int) -> Path:
        """Run the pipeline on a series and publish the results; return the folder."""
        revision = self.complete(series_id)
        with self.database.immediate():
            revisions.queue(self.database, revision)
        lease = jobs.claim(self.database, "here")
        assert lease is not None
        series = catalog.by_id(self.database, series_id)
        folder = self.layout.result_directory(series.study, series.uid, series.split, revision.n)
        folder.mkdir(parents=True)
        files = [self.layout.store / path for path in revisions.frozen_paths(self.database, revision.id)]
        reports = process_series(
            files,
            study=series.study,
            series=series.name,
            revision=revision.n,
            made_at=datetime(2020, 1, 1, tzinfo=UTC),
            out=folder,
            settings=Config().pipeline,
        )
        told = [json.loads(json.dumps(report.as_json())) for report in reports]

        def publish(_newest: bool) -> None:
            findings.record(self.database, revision.id, [findings.Finding.of_report(one) for one in told])

        jobs.finish(self.database, lease, told, "done", publish)
        return folder

    def config(self, **web: object) -> Config:
        """Return the configuration of the node that serves this root."""
        return Config.model_validate({"storage": {"root": str(self.layout.root), "reserve_mb": 0}, "web": web})

    def app(self, **web: object) -> ASGIApp:
        """Return the whole application, with its guard."""
        return make_app(make_node(self.config(**web)))

    @contextmanager
    def served(self, **web: object) -> Iterator[str]:
        """Serve the page on a free port of loopback; yields its address."""
        with listening(self.app(**web)) as address:
            yield address


@contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """Serve an application on a free port of loopback; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="critical"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def write_chest(
    folder: Path, *, edit: Edit | None = None, **names: str
) -> tuple[list[Path], npt.NDArray[np.int16], Grid]:
    """Write a chest of 40 small slices; return its files, its HU and where they lie."""
    voxels, _, grid = chest((40, 96, 96), (7.5, 4.0, 4.0))
    folder.mkdir(parents=True)
    uids = {"study_uid": STUDY, "series_uid": SERIES, **names}
    return write_series(folder, voxels, grid, edit=edit, **uids), voxels, grid


def recoded(path: Path, target: Path, transfer_syntax: str, *, series: str) -> Path:
    """Write an image again in another transfer syntax and series."""
    image = pydicom.dcmread(path)
    image.SeriesInstanceUID = series
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{series}.1"
    image.compress(transfer_syntax, generate_instance_uid=False)
    image.save_as(target)
    return target
