"""The API against its own description: what schemathesis makes of each operation, right and wrong, over an index."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.core.failures import FailureGroup
from schemathesis.python import asgi
from schemathesis.schemas import APIOperation

from ctnode.archive import outbox, revisions
from ctnode.archive.outbox import Parcel
from ctnode.web import guard
from ctnode.web.app import make_app
from ctnode.web.users import Role, token_line
from tests.archive_root import stack
from tests.web_root import Site

pytestmark = pytest.mark.integration

EXAMPLES = int(os.environ.get("CTNODE_TEST_CALLS", "8"))
SEED = int(os.environ.get("CTNODE_TEST_SEED", "0"))
DESCRIPTION = "/api/v1/openapi.json"
Headers = dict[str, str]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Site, Headers]]:
    """A node with series in several states, results and deliveries, and what a program that may operate sends."""
    line, token = token_line("robot", Role.OPERATE)
    (tmp_path / "users").write_text(line + "\n")
    target = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 1}
    site = Site(tmp_path, targets=[target], web={"users": str(tmp_path / "users"), "names": [asgi.HOST]})
    site.queue()
    site.publish()
    site.root.hold(*stack(2, series="1.2.3.2"))
    site.queue(2, series="1.2.3.3")
    revisions.hold(site.root.database, 2, "to look at")
    with site.root.database.immediate():
        for kind in ("report", "seg"):
            outbox.post(site.root.database, 1, [Parcel("pacs", kind, f"a/{kind}.dcm", "0" * 64)])
    yield site, {"Authorization": f"Bearer {token}"}
    site.close()


def described(site: Site, headers: Headers) -> schemathesis.BaseSchema:
    load_all_checks()
    return schemathesis.openapi.from_asgi(DESCRIPTION, make_app(site.node), headers=headers)


def ask(operation: APIOperation, mode: GenerationMode, headers: Headers, names: Sequence[str] = ()) -> set[int]:
    """Call one operation so and so often, each answer through all checks of schemathesis; returns its statuses.

    Asked rightly, most of what is asked for is there: numbers are small, texts mostly of ``names``.
    """
    statuses: set[int] = set()

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(operation.as_strategy(generation_mode=mode))
    def run(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE:
            for name, value in case.path_parameters.items():
                if isinstance(value, int):
                    case.path_parameters[name] = 1 + value % 4 if name != "revision" else 1
                elif number := zlib.crc32(value.encode("utf-8", "replace")) % (len(names) + 1):
                    case.path_parameters[name] = names[number - 1]
        statuses.add(case.call_and_validate(headers=headers).status_code)

    run()
    return statuses


def test_no_call_answers_otherwise_than_described(served: tuple[Site, Headers]) -> None:
    site, headers = served
    names = ["pacs", "ct.json", "preview.png", str(site.root.one("SELECT max(name) FROM associations"))]
    statuses: dict[str, set[int]] = {}
    for found in described(site, headers).get_all_operations():
        operation = found.ok()
        statuses[operation.label] = set().union(*(ask(operation, mode, headers, names) for mode in GenerationMode))
    assert len(statuses) >= 20
    # Not all was refused: what an operation does when it is asked rightly was seen too.
    assert sum(200 in seen for seen in statuses.values()) >= 14, statuses
    assert set().union(*statuses.values()) >= {200, 400, 404, 409}


def test_a_call_that_needs_no_token_would_be_found(
    served: tuple[Site, Headers], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, headers = served
    schema = described(site, headers)
    monkeypatch.setattr(guard, "PUBLIC", guard.PUBLIC | {"/api/v1/problems"})
    with pytest.raises(FailureGroup, match="without authentication"):
        ask(schema["/api/v1/problems"]["GET"], GenerationMode.POSITIVE, headers)
