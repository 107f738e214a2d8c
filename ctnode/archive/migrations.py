"""All migrations of the index, registered in the order in which they are applied."""

from __future__ import annotations

# isort: off
from ctnode.archive.schema import MIGRATIONS
from ctnode.archive import schema_headers as schema_headers
from ctnode.archive import schema_retention as schema_retention
from ctnode.archive import schema_keys as schema_keys
from ctnode.archive import schema_alerts as schema_alerts
from ctnode.archive import schema_metrics as schema_metrics
from ctnode.archive import schema_web as schema_web
from ctnode.archive import schema_again as schema_again

__all__ = ["MIGRATIONS"]
