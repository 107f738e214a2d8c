"""What every page and every answer of the API begins with: configuration, folders, the index read only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
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
    log
        The log of the role.
    """

    config: Config
    layout: Layout
    users: Users
    sessions: Sessions
    live: Live
    log: structlog.typing.FilteringBoundLogger

    def open_database(self) -> Database:
        """Return a read-only connection for the calling thread; use it in a ``with`` block, which closes it.

        Raises
        ------
        Unavailable
            If there is no index yet, or it is of an older ctnode.
        """
        database = Database(self.layout.database, readonly=True)
        try:
            database.require_current()
        except BaseException:
            database.close()
            raise
        return database

    def open_for_writing(self) -> Database:
        """Return a connection for one action of an operator; use it in a ``with`` block.

        Raises
        ------
        Unavailable
            If there is no index yet, or it is of an older ctnode: migrating is the keeper's affair.
        """
        self.open_database().close()
        return Database(self.layout.database)


def make_node(config: Config) -> WebNode:
    """Return the node of a configuration, with nobody logged in."""
    from ctnode.web.live import Live
    from ctnode.web.sessions import Sessions
    from ctnode.web.users import Users

    layout = Layout(config.root, config.results)
    return WebNode(config, layout, Users(config.web.users), Sessions(), Live(layout), log.get())
