"""The instances of a series, piece by piece."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctnode.archive import rows
from tests.archive_root import Root, stack

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("piece", [1, 3, 4, 5, 12, 100])
def test_each_instance_comes_once_whatever_the_size_of_the_pieces(tmp_path: Path, piece: int) -> None:
    root = Root(tmp_path / "node")
    try:
        root.queued(*stack(12))
        found = [row[0] for row in rows.instances(root.database, 1, "sop_instance", piece=piece)]
        assert found == [row[0] for row in root.rows("SELECT sop_instance FROM instances ORDER BY sop_instance")]
        assert len(found) == 12
        plan = root.rows(
            "EXPLAIN QUERY PLAN SELECT 1 FROM instances WHERE series_id = 1 AND"
            " (sop_instance, digest, transfer_syntax) > ('', '', '') ORDER BY sop_instance, digest, transfer_syntax"
        )
        assert "instances_by_identity" in str(plan)
        assert "TEMP B-TREE" not in str(plan)
    finally:
        root.close()
