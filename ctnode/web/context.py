"""What every page and every answer of the API begins with: configuration, folders, the index read only."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
from ctnode.config import Config


@dataclass(frozen=True, slots=True)
class WebNode:
    """One node as its page sees it."""

    config: Config
    layout: Layout
    log: structlog.typing.FilteringBoundLogger

    def open_database(self) -> Database:
        """Return a read-only connection for the calling thread; use it in a ``with`` block, which closes it."""
        return Database(self.layout.database, readonly=True)
