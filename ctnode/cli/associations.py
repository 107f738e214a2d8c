"""Commands about associations: what did that modality send last night, and why was my object refused."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

import click
from pydicom.uid import UID

from ctnode.archive import associations, rejections
from ctnode.archive.timeline import iso
from ctnode.cli.show import Settings, as_json, as_times, pairs, print_json, print_table

_UNITS_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _since(_context: click.Context, _option: click.Parameter, value: str) -> float:
    """Return the point in time that ``90m``, ``12h``, ``7d`` (ago) or ISO 8601 in UTC mean, in seconds since 1970."""
    ago = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", value)
    if ago:
        return time.time() - float(ago[1]) * _UNITS_S[ago[2]]
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no time: write 12h, 7d or 2026-01-31T20:00") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


@click.group("associations")
def associations_group() -> None:
    """Look at who sent what, and at who was turned away."""


@associations_group.command("list")
@click.option("--calling-ae", help="Only of this sender.")
@click.option(
    "--since", callback=_since, default="1d", show_default=True, help="From then on: 90m, 12h, 7d, or ISO 8601 in UTC."
)
@click.option("--limit", default=50, show_default=True, help="At most so many.")
@as_json
@click.pass_obj
def list_associations(settings: Settings, calling_ae: str | None, since: float, limit: int, json_wanted: bool) -> None:
    """List associations and rejections, newest first."""
    _, layout, database = settings.reading()
    found = associations.listing(database, calling_ae=calling_ae, since=since, limit=limit)
    turned_away = [
        rejection
        for rejection in rejections.read(layout.rejections)
        if rejection.at >= since and calling_ae in {None, rejection.calling_ae}
    ][-limit:]
    if json_wanted:
        print_json(
            {
                "associations": [as_times(row) for row in found],
                "rejections": [as_times(asdict(rejection)) for rejection in reversed(turned_away)],
            }
        )
        return
    rows = [(row["opened_at"], *_line(row)) for row in found]
    rows += [
        (r.at, "", r.calling_ae, r.address, "rejected", f"{r.count} times" if r.count > 1 else "", r.reason)
        for r in turned_away
    ]
    print_table(
        ("began", "association", "from", "address", "ended", "instances", "refused"),
        [(iso(at), *rest) for at, *rest in sorted(rows, key=lambda row: row[0], reverse=True)[:limit]],
        empty="no associations since then",
    )


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    refused = [f"{count} x {status}" for status, count in row["statuses"].items() if status != "0000"]
    refused += [f"{len(row['refused'])} contexts"] if row["refused"] else []
    fed = f"{row['instances']} of {len(row['series'])} series" if row["series"] else str(row["instances"])
    sender = row["calling_ae"] or row["door"]
    return (row["association"], sender, row["peer_address"], row["how"] or "open", fed, ", ".join(refused))


@associations_group.command("show")
@click.argument("name")
@as_json
@click.pass_obj
def show_association(settings: Settings, name: str, json_wanted: bool) -> None:
    """Show everything about one association: contexts, series, and what was refused and why."""
    _, _, database = settings.reading()
    row = associations.show(database, name)
    if json_wanted:
        print_json(as_times(row))
        return
    pairs(
        {
            "from": f"{row['calling_ae']} at {row['peer_address']}{' by TLS' if row['is_tls'] else ''}",
            "peer": row["peer"] or "in no [[peers]] entry",
            "called": row["called_ae"],
            "began": iso(row["opened_at"]),
            "ended": f"{iso(row['ended_at'])} {row['how'] or 'open'} {row['reason']}".strip(),
            "instances": f"{row['instances']} new, {row['duplicates']} identical resends",
            "answers": ", ".join(f"{status}H: {count}" for status, count in row["statuses"].items()) or "none yet",
        }
    )
    _section("series", [f"{fed['series']}  {fed['instances']} instances" for fed in row["series"]])
    _section(
        "instances refused",
        [f"{refusal['status']:04X}H  {refusal['sop_instance']}  {refusal['comment']}" for refusal in row["refusals"]],
    )
    _section("contexts refused", [f"{_name(uid)}: {reason}" for uid, reason in row["refused"]])
    accepted = Counter(f"{_name(uid)}: {_name(syntax)}" for uid, syntax in row["accepted"])
    _section("contexts accepted", list(accepted))


def _section(title: str, lines: list[str]) -> None:
    if lines:
        click.echo(f"\n{title}")
        for line in lines:
            click.echo(f"  {line}")


def _name(uid: str) -> str:
    """Return the standard's name of a UID, and the UID itself where there is none."""
    return str(UID(uid).name)


def register(group: click.Group) -> None:
    """Add the commands of this module."""
    group.add_command(associations_group)
