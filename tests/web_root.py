"""A node's page without its process: a root on disk, the application in this process, a browser that is none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from ctnode.archive import findings
from ctnode.archive.findings import Finding
from ctnode.config import Config
from ctnode.web.app import make_app
from ctnode.web.context import WebNode, make_node
from ctnode.words import Issue, LungStatus, Severity, VolumeStatus
from tests.archive_root import Root, stack

BASE = "http://127.0.0.1:8112"


class Site:
    """One root with its page; ``sections`` are tables of the configuration."""

    def __init__(self, place: Path, **sections: Any) -> None:
        self.root = Root(place / "node")
        self.config = Config.model_validate({"storage": {"root": str(place / "node"), "reserve_mb": 1}, **sections})
        self.node: WebNode = make_node(self.config)
        self.client = self.browser()

    def browser(self, base: str = BASE, *, raises: bool = True) -> TestClient:
        """Return another browser."""
        return TestClient(make_app(self.node), base, follow_redirects=False, raise_server_exceptions=raises)

    def close(self) -> None:
        """Close the index."""
        self.node.readers.close()
        self.root.close()

    def csrf(self, client: TestClient | None = None) -> str:
        """Return the token of a browser's session, as a page carries it."""
        page = (client or self.client).get("/upload").text
        found = re.search(r'<meta name="csrf" content="([0-9a-f]+)">', page)
        assert found is not None
        return found[1]

    def post(self, path: str, **fields: str) -> Any:
        """Send a form of the page."""
        return self.client.post(path, data={"csrf": self.csrf(), **fields})

    def publish(self, series_id: int = 1, *, status: VolumeStatus = VolumeStatus.EXACT) -> Path:
        """Bring a series to an end with results, as a worker would."""
        revision = self.root.one("SELECT max(id) FROM revisions WHERE series_id = ?", series_id)
        study, uid = self.root.rows(
            "SELECT studies.uid, series.uid FROM series JOIN studies ON studies.id = study_id WHERE series.id = ?",
            series_id,
        )[0]
        folder = self.root.layout.result_directory(str(study), str(uid), 1, 1)
        folder.mkdir(parents=True)
        (folder / "preview.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        (folder / "ct.nii.gz").write_bytes(b"\x1f\x8b")
        (folder / "ct.json").write_text(json.dumps({"SeriesDescription": "<b>thin</b>"}))
        measurements = {"status": "OK", "reasons": [], "right": {"volume_ml": 2345.67, "mean_hu": -820.0}}
        (folder / "measurements.json").write_text(json.dumps(measurements))
        issue = Issue("TILTED", Severity.WARNING, "resampled along the tilt", (3, 4, 5))
        found = Finding(1, status, LungStatus.OK, (), (issue,))
        with self.root.database.immediate():
            findings.record(self.root.database, int(str(revision)), [found])
            self.root.database.execute("UPDATE revisions SET state = 'DONE' WHERE id = ?", (revision,))
            self.root.database.execute("UPDATE jobs SET state = 'DONE' WHERE revision_id = ?", (revision,))
        return folder

    def queue(self, count: int = 3, **changes: object) -> None:
        """Bring a series as far as the queue."""
        self.root.queued(*stack(count, **changes))
