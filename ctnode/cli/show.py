"""What all commands share: the configuration, who may write, how things are printed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from ctnode import config as configuration
from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
from ctnode.config import Config
from ctnode.flow.why import as_times as as_times
from ctnode.words import Unavailable

as_json = click.option("--json", "json_wanted", is_flag=True, help="Print JSON.")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the configuration comes from."""

    config_file: Path | None

    def load(self, words: Iterable[str] = ()) -> configuration.Loaded:
        """Read and check the configuration; ``words`` (``SECTION.KEY=VALUE``) come before everything else."""
        return configuration.load(self.config_file, overrides=configuration.from_words(words))

    def config(self) -> Config:
        """Return the checked configuration."""
        return self.load().config

    def reading(self) -> tuple[Config, Layout, Database]:
        """Return what a reading command needs; it never makes a root.

        Raises
        ------
        Unavailable
            If there is no node, or its index is older than this program.
        """
        config = self.config()
        configuration.require_root(config)
        layout = Layout(config.root, config.results)
        database = Database(layout.database, readonly=True)
        database.require_current()
        return config, layout, database

    def writing(self) -> tuple[Config, Layout, Database]:
        """Return what a writing command needs, acting as the owner of the root."""
        config = self.config()
        configuration.require_root(config)
        act_as_owner(config.root)
        layout = Layout(config.root, config.results)
        database = Database(layout.database)
        database.migrate()
        return config, layout, database


def act_as_owner(root: Path) -> None:
    """Go on as the owner of the root, so that no file appears that the node cannot touch.

    Raises
    ------
    Unavailable
        If this user is neither the owner nor root.
    """
    place = next(path for path in (root, *root.parents) if path.exists())
    status = place.stat()
    if os.geteuid() == status.st_uid:
        return
    if os.geteuid() != 0:
        raise Unavailable(f"{root} belongs to another user", hint=f"run this as the user with number {status.st_uid}")
    os.setegid(status.st_gid)
    os.seteuid(status.st_uid)


def print_json(value: object) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2, default=str))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print a table for people; in a pipe, plain lines with tabs."""
    listed = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not listed:
        click.echo(empty)
        return
    console = Console()
    if not console.is_terminal:
        for row in listed:
            click.echo("\t".join(row))
        return
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in listed:
        table.add_row(*row)
    console.print(table)


def pairs(values: Mapping[str, object]) -> None:
    """Print names and values, one a line."""
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        click.echo(f"{name:<{width}}  {value}")


Registrar = Callable[[click.Group], None]
