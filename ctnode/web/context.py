"""What every page and every answer of the API begins with: configuration, folders, the index read only."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
from ctnode.archive.readers import Readers
from ctnode.config import Config
from ctnode.ops import log

if TYPE_CHECKING:
    from ctnode.web.live import Live
    from ctnode.web.sessions import Sessions
    from ctnode.web.users import Users


@dataclass(frozen=True, slots=True)
class WebNode:
    """One node as its page sees it.

    Parameters
    ----------
    config
        The configuration; a reload makes another ``WebNode``.
    layout
        Its folders.
    users, sessions
        Who may log in, and who has; they outlive a reload.
    live
        What happens now, sampled once a second.
    readers
        The connections to the index; they outlive a reload too.
    log
        The log of the role.
    """

    config: Config
    layout: Layout
    users: Users
    sessions: Sessions
    live: Live
    readers: Readers
    log: structlog.typing.FilteringBoundLogger

    def open_database(self) -> AbstractContextManager[Database]:
        """Return a read-only connection for a ``with`` block of the calling thread.

        Raises
        ------
        Unavailable
            On entering, if there is no index yet, or it is of an older ctnode.
        """
        return self.readers.reading()

    def open_for_writing(self) -> Database:
        """Return a connection for one action of an operator; use it in a ``with`` block.

        Raises
        ------
        Unavailable
            If there is no index yet, or it is of an older ctnode: migrating is the keeper's affair.
        """
        with self.open_database():
            return Database(self.layout.database)


def make_node(config: Config) -> WebNode:
    """Return the node of a configuration, with nobody logged in."""
    from ctnode.web.live import Live
    from ctnode.web.sessions import Sessions
    from ctnode.web.users import Users

    layout = Layout(config.root, config.results)
    readers = Readers(layout.database)
    return WebNode(config, layout, Users(config.web.users), Sessions(), Live(layout, readers), readers, log.get())
