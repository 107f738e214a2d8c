"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ctnode.cli import cli

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).parents[2]
MODULES = sorted((REPOSITORY / "ctnode").rglob("*.py"))
LONGEST_MODULE = 400
# Places where only one machine has anything; /opt/ctnode, /etc/ctnode and /var/lib/ctnode are meant.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|home/\w+|tmp/\w+|mnt|Users)/")
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")


def own_files() -> Iterator[tuple[str, str]]:
    """Return name and text of each other file that is under version control or about to be."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=REPOSITORY,
            capture_output=True,
            check=True,
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("this is no clone of the repository")
    for name in filter(None, listed.stdout.decode().split("\0")):
        file = REPOSITORY / name
        if file.is_file() and file != Path(__file__):
            yield name, file.read_text(encoding="utf-8", errors="replace")


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in own_files()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_file_names_a_place_of_one_machine() -> None:
    assert [line for line in lines_with(MACHINE_PATH) if "mktemp" not in line] == []


def test_nothing_is_marked_as_unfinished() -> None:
    assert lines_with(UNFINISHED) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_module_says_what_it_is_for_and_is_one_thing(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= LONGEST_MODULE


def commands(group: click.Group, before: str = "ctnode") -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{before} {name}")
        elif not command.hidden:
            yield f"{before} {name}"


@pytest.mark.parametrize("command", sorted(commands(cli)))
def test_command_is_explained_where_people_look(command: str) -> None:
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    assert re.search(rf"{re.escape(command)}\b(?!-)", text), f"neither README.md nor docs/ name `{command}`"


def test_readme_marks_the_commands_that_ci_runs() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for mark in ("install", "the main job", "tests"):
        assert re.search(rf"^.+\S +# {mark}$", text, re.MULTILINE), f"no line ends with '# {mark}'"


def test_version_and_licence_say_what_it_is_not() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert "Research use only" in readme
    assert "not a medical device" in readme
    assert (REPOSITORY / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
