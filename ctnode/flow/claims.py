"""Evidence from outside as claims about one series: what it names, compared with what the node holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ctnode.archive import evidence
from ctnode.archive.database import Database
from ctnode.archive.revisions import Revision
from ctnode.flow.completion import Claim, describe_gap, describe_number_gaps
from ctnode.words import Concatenation, Content, Evidence, EvidenceKind

_MPPS: Final = frozenset({EvidenceKind.MPPS_COMPLETED, EvidenceKind.MPPS_DISCONTINUED})
_LISTS: Final = _MPPS | {EvidenceKind.COMMITMENT_REQUEST, EvidenceKind.AVAILABILITY_NOTICE}
_COUNTED: Final = frozenset({EvidenceKind.QUERY_RESULT, EvidenceKind.RETRIEVE_FINAL})


def claims(database: Database, revision: Revision, known: Sequence[Evidence], *, is_quiet: bool) -> tuple[Claim, ...]:
    """Return what each signal claims of a series, which ``is_quiet`` by the clock that only runs forward.

    Several procedure steps may each have made a part of a series, so their lists are one (PS3.4 F.7.2). A list of a
    commitment request may go over several series; it proves one of them only when all of it is held.
    """
    if not any(one.kind in _LISTS or one.kind in _COUNTED for one in known):
        return ()
    held = {
        row[0]
        for row in database.execute("SELECT sop_instance FROM instances WHERE series_id = ?", (revision.series_id,))
    }
    performed = [one for one in known if one.kind in _MPPS and one.series]
    named = {uid for one in performed for uid in one.instances}
    found = []
    if named:
        missing = len({uid for one in performed for uid in evidence.missing(database, one)})
        found.append(Claim(f"{_words(performed[-1])} with {len(named)} instances", missing, held <= named))
    for one in known:
        if one.kind in _LISTS - _MPPS and one.instances:
            missing = len(evidence.missing(database, one))
            words = f"{_words(one)} with {len(one.instances)} instances"
            found.append(Claim(words, missing, held <= set(one.instances)))
        elif one.kind in _COUNTED and one.series:
            found += _counted(database, revision, one, held, is_quiet=is_quiet)
    return tuple(found)


def _counted(database: Database, revision: Revision, one: Evidence, held: set[str], *, is_quiet: bool) -> list[Claim]:
    if one.instances:
        missing, covers, total = len(evidence.missing(database, one)), held <= set(one.instances), len(one.instances)
    elif one.count is not None:
        missing, covers, total = max(0, one.count - len(held)), one.count >= len(held), one.count
    else:
        return []
    # An archive may itself still be receiving: only what it says after the quiet time proves something. Its time is of
    # the clock on the wall, which somebody may have set forward.
    is_query = one.kind is EvidenceKind.QUERY_RESULT
    is_early = is_query and not (is_quiet and one.at >= revision.last_arrival + revision.quiet_s)
    return [Claim(f"{_words(one)} with {total} instances", missing + one.failed, covers, is_early)]


def of_concatenations(concatenations: Sequence[Concatenation]) -> tuple[Claim, ...]:
    """Return what the parts of cut multi-frame images claim: each total is a proof for its own image alone."""
    return tuple(
        Claim(
            f"a concatenation of {one.total or 'an unknown number of'} parts",
            one.missing,
            covers=False,
        )
        for one in concatenations
    )


def in_progress(known: Sequence[Evidence], modality: str) -> str:
    """Return the procedure step of this modality that is still in progress, in words, or an empty text."""
    for one in known:
        if one.kind is EvidenceKind.MPPS_IN_PROGRESS and one.modality in {"", modality}:
            return f"the procedure step of {one.source}"
    return ""


def discontinued(database: Database, known: Sequence[Evidence], modality: str) -> str:
    """Return the procedure step that was broken off without all that it lists being here, in words, or an empty text.

    One that lists nothing says nothing of what it has made.
    """
    for one in known:
        if one.kind is EvidenceKind.MPPS_DISCONTINUED and one.modality in {"", modality}:
            absent = len(evidence.missing(database, one))
            if not one.instances:
                return f"the procedure step of {one.source} was discontinued and lists no instances"
            if absent:
                return f"the procedure step of {one.source} was discontinued, {absent} instances of its list are absent"
    return ""


def describe_headers(content: Content) -> tuple[str, ...]:
    """Return what the headers of a series say of how many images there should be, a line each."""
    numbers = sorted(set(content.numbers))
    numbered = describe_number_gaps(numbers) or (
        f"instance numbers {numbers[0]} to {numbers[-1]}, {len(numbers)} different ones" if numbers else ""
    )
    places = len(set(content.positions_mm))
    placed = describe_gap(content.positions_mm) or (f"{places} slice positions without a gap" if places > 2 else "")
    return (
        *(line for line in (numbered, placed) if line),
        *(
            f"acquisition {'without a number' if one.number is None else one.number}: {one.held} of {one.stated}"
            f" images here, {one.held_in_study} in the study"
            for one in content.acquisitions
        ),
        *(
            f"concatenation {one.uid}: {len(one.parts)} of {one.total or 'an unknown number of'} parts"
            for one in content.concatenations
        ),
        *([f"{content.frames} frames in {content.multiframes} multi-frame instances"] if content.multiframes else ()),
    )


def notes(content: Content) -> tuple[str, ...]:
    """Return what the headers say that changes no verdict, in words."""
    whole = sum(one.total is not None and not one.missing for one in content.concatenations)
    shared = [one for one in content.acquisitions if one.held < one.stated <= one.held_in_study]
    return (
        *([f"{content.frames} frames in {content.multiframes} multi-frame instances"] if content.multiframes else ()),
        *([f"{whole} concatenation(s) whole by their total"] if whole else ()),
        *(
            f"{one.held} of {one.stated} images of acquisition {one.number}, the others in other series"
            for one in shared
        ),
    )


def _words(one: Evidence) -> str:
    return f"{one.kind.replace('_', ' ')} from {one.source}"
