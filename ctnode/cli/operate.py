"""Commands for who operates the node: status, configuration, health, index, neighbours."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from ctnode import config as configuration
from ctnode.archive import findings, rebuild
from ctnode.archive.database import Database, copy_to
from ctnode.archive.doorbell import Doorbell
from ctnode.archive.layout import Layout
from ctnode.cli.show import Settings, act_as_owner, as_json, pairs, print_json, print_table
from ctnode.cli.steps import Steps
from ctnode.cli.trail import did
from ctnode.flow.doctor import examine
from ctnode.flow.operating import neighbour, neighbours
from ctnode.ops.durable import is_locked, lock
from ctnode.ops.role import read_reports
from ctnode.words import ExitCode, NotFound, Unavailable, WrongState

BACKUP_WAIT_S = 600.0


@click.command()
@click.option("--watch", "is_watched", is_flag=True, help="Show the node at a glance each second, until Ctrl-C.")
@as_json
@click.pass_obj
def status(settings: Settings, is_watched: bool, json_wanted: bool) -> None:
    """Show the roles, the counters and the queue."""
    config, layout, database = settings.reading()
    if is_watched:
        from ctnode.cli.watch import watch

        watch(config, database)
    roles = read_reports(layout.run)
    counters = database.counters()
    if json_wanted:
        print_json({"root": str(config.root), "roles": [asdict(role) for role in roles], "counters": counters})
        return
    print_table(
        ("role", "pid", "state", "since", "now"),
        [(role.role, role.pid, role.state, role.started, _shown(role.counters)) for role in roles],
        empty="no role runs",
    )
    click.echo("")
    pairs({name: counters[name] for name in sorted(counters)} or {"index": "empty"})


def _shown(counters: Any) -> str:
    return " ".join(f"{name}={value}" for name, value in counters.items() if value not in (None, [], {}))


@click.command("check-config")
@click.option("--show", is_flag=True, help="Print every key with its value, where it came from, and its meaning.")
@as_json
@click.pass_obj
def check_config(settings: Settings, show: bool, json_wanted: bool) -> None:
    """Check the configuration and say what is wrong with it; touches nothing."""
    from ctnode.web.access import require_access
    from ctnode.wire.certificates import check_tls
    from ctnode.wire.listener import listening_address
    from ctnode.wire.peers import require_policy

    loaded = settings.load()
    require_policy(listening_address(loaded.config.node.host), loaded.config)
    check_tls(loaded.config)
    require_access(loaded.config)
    rows = list(configuration.explain(loaded))
    if json_wanted:
        print_json({key: {"value": value, "from": origin} for key, value, origin, _ in rows})
    elif show:
        print_table(("key", "value", "from", "meaning"), rows, empty="")
    else:
        click.echo(f"{loaded.file or 'defaults'}: no mistake found")


@click.command()
@as_json
@click.pass_obj
def doctor(settings: Settings, json_wanted: bool) -> None:
    """Look for what is wrong with this node; exit code 1 if there is anything."""
    config = settings.config()
    findings = examine(config)
    if json_wanted:
        print_json([asdict(finding) for finding in findings])
    for finding in [] if json_wanted else findings:
        click.echo(f"{'ok  ' if finding.is_good else 'FIND'}  {finding.what}: {finding.found}")
        if finding.hint and not finding.is_good:
            click.echo(f"      {finding.hint}")
    raise click.exceptions.Exit(ExitCode.OK if all(f.is_good for f in findings) else ExitCode.FINDINGS)


@click.command("rebuild-index")
@click.pass_obj
def rebuild_index(settings: Settings) -> None:
    """Make the index anew from the files; queues and sends nothing. Refused while a keeper runs."""
    config = settings.config()
    if not (config.root / "store").is_dir():
        raise Unavailable(f"no node at {config.root}", hint="name another storage.root")
    act_as_owner(config.root)
    layout = Layout(config.root, config.results)
    # Perhaps only the store is left.
    layout.create()
    lock(layout.run / "keep.lock", owner="keeper")
    aside = rebuild.set_aside(layout)
    with Database(layout.database) as database:
        database.migrate()
        found = _rebuilt(database, layout)
    _say_rebuilt(found)
    did(config, "index rebuilt", instances=found.instances)
    if aside is not None:
        click.echo(f"the old index is {aside}")
    raise click.exceptions.Exit(ExitCode.FINDINGS if found.unreadable else ExitCode.OK)


def _rebuilt(database: Database, layout: Layout) -> rebuild.Rebuilt:
    """Make rows of the files of the store, and of what the results folders say of their volumes."""
    with Steps("rebuild", "files") as steps:
        found = rebuild.rebuild(database, layout, steps.at)
    sidecars = [f"{folder}/ct.json" for folder in findings.rebuild(database, layout)]
    return replace(found, unreadable=(*(f"store/{line}" for line in found.unreadable), *sidecars))


def _say_rebuilt(found: rebuild.Rebuilt) -> None:
    click.echo(
        f"{found.instances} instances in {found.series} series: {found.done} DONE by their results, {found.held} held"
    )
    if found.held:
        click.echo("held series wait: `ctnode series requeue UID` runs one")
    for line in found.unreadable:
        click.echo(f"not readable: {line}", err=True)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--restore", is_flag=True, help="Put FILE back as the index; refused while a keeper runs.")
@click.pass_obj
def backup(settings: Settings, file: Path, restore: bool) -> None:
    """Copy the index to FILE while the node runs; the images themselves are files below store/."""
    config = settings.config()
    act_as_owner(config.root)
    layout = Layout(config.root, config.results)
    target = file.resolve()
    if restore:
        _restore(layout, target)
        did(config, "index restored from a backup")
        return
    configuration.require_root(config)
    with Database(layout.database) as database:
        database.migrate()
        if is_locked(layout.run / "keep.lock"):
            with Steps("backup", "seconds") as steps:
                _ask_keeper(database, layout, target, steps)
        else:
            lock(layout.run / "keep.lock", owner="keeper")
            with Steps("backup", "pages") as steps:
                copy_to(database.connection, target, between=lambda _, left, pages: steps.at(pages - left, pages))
    did(config, "index copied")
    click.echo(f"the index is copied to {target}")


def _ask_keeper(database: Database, layout: Layout, target: Path, steps: Steps) -> None:
    """Let the keeper copy on its own connection, so that its commits do not restart the copy."""
    with database.immediate():
        request = database.insert(
            "INSERT INTO requests (kind, argument, asked_at) VALUES ('backup', ?, ?)", (str(target), time.time())
        )
    Doorbell(layout.run).ring()
    deadline = time.monotonic() + BACKUP_WAIT_S
    began = time.monotonic()
    while time.monotonic() < deadline:
        steps.at(round(time.monotonic() - began), None, "the keeper copies")
        row = database.execute("SELECT ended_at, error FROM requests WHERE id = ?", (request,)).fetchone()
        if row[0] is not None:
            if row[1]:
                raise Unavailable(f"the keeper could not copy: {row[1]}")
            return
        time.sleep(0.05)
    raise Unavailable("the keeper did not copy the index in time", hint="see its log")


def _restore(layout: Layout, source: Path) -> None:
    if not source.is_file():
        raise NotFound(f"no file {source}")
    if layout.database.exists() and source.samefile(layout.database):
        raise WrongState(f"{source} is the index itself", hint="name a copy that `ctnode backup` made")
    with Database(source, readonly=True) as copy:
        # Before anything is moved out of its way.
        copy.require_index()
    layout.create()
    lock(layout.run / "keep.lock", owner="keeper")
    aside = rebuild.set_aside(layout)
    with Database(source, readonly=True) as old, Steps("restore", "pages") as steps:
        copy_to(old.connection, layout.database, between=lambda _, left, pages: steps.at(pages - left, pages))
    with Database(layout.database) as database:
        database.migrate()
        found = _rebuilt(database, layout)
    click.echo(f"the index is restored from {source}; what came after it was made:")
    _say_rebuilt(found)
    if aside is not None:
        click.echo(f"the old index is {aside}")


@click.command()
@click.argument("name", required=False)
@click.option("--all", "everybody", is_flag=True, help="All peers with a port, and all targets.")
@as_json
@click.pass_obj
def echo(settings: Settings, name: str | None, everybody: bool, json_wanted: bool) -> None:
    """Ask a peer or target by NAME whether it is there: latency, what it accepts, TLS."""
    config = settings.config()
    chosen = neighbours(config) if everybody else {name or "": neighbour(config, name)}
    if not chosen:
        raise NotFound("no peer or target", hint="none is configured with a port")
    # Those that hang are waited for once, and not one after the other.
    with ThreadPoolExecutor(max_workers=16) as pool, Steps("echo", "answers", is_quiet=json_wanted) as steps:
        asked = {one: pool.submit(ask) for one, ask in chosen.items()}
        while wait(asked.values(), timeout=0.2).not_done:
            steps.at(sum(future.done() for future in asked.values()), len(asked))
        results = {one: future.result() for one, future in asked.items()}
    if json_wanted:
        print_json([{"name": one, **asdict(result)} for one, result in results.items()])
    for one, result in [] if json_wanted else results.items():
        word = "answers" if result.ok else "FAILS"
        click.echo(f"{one}: {word} in {result.seconds * 1000:.1f} ms {result.detail}".rstrip())
        if result.accepted:
            click.echo(f"    accepts {', '.join(result.accepted)}")
        if result.syntaxes:
            click.echo(f"    takes CT images in {', '.join(result.syntaxes)}")
        if result.tls:
            click.echo(f"    {result.tls}")
    raise click.exceptions.Exit(ExitCode.OK if all(one.ok for one in results.values()) else ExitCode.FINDINGS)


def register(group: click.Group) -> None:
    """Add the commands of this module."""
    for command in (status, check_config, doctor, rebuild_index, backup, echo):
        group.add_command(command)
