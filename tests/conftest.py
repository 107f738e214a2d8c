"""What every test begins with: logging as a fresh process has it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

# How long an example takes says how busy the machine is, and is no property of what is tested.
settings.register_profile("ctnode", deadline=None)
settings.load_profile("ctnode")


@pytest.fixture(autouse=True)
def fresh_logging() -> Iterator[None]:
    """Forget how an earlier test, such as one that ran a command in this process, set up logging."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long ones, so that no process is left with one when all others have nothing more to do."""
    items.sort(key=lambda item: item.get_closest_marker("acceptance") is None)
