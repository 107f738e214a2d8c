"""What is declared is used, what is used is declared, and nothing that comes along is under the GPL."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).parents[2]
# Never imported by us: pydicom finds these decoders by their entry points or imports them by name.
LOADED_BY_OTHERS = {"python-gdcm", "pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "pyjpegls"}
OURS = {"ctnode", "tests", "bench"}


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def declared(extra: str = "") -> set[str]:
    lines = project()["optional-dependencies"][extra] if extra else project()["dependencies"]
    return {canonicalize_name(Requirement(line).name) for line in lines}


@cache
def distributions() -> dict[str, list[str]]:
    found = {
        module: sorted({canonicalize_name(name) for name in names})
        for module, names in metadata.packages_distributions().items()
    }
    # A wheel that lists no top-level names leaves them to its files, whose compiled ones carry a suffix.
    return {module.partition(".")[0]: names for module, names in found.items()}


def imported(folder: str) -> dict[str, Path]:
    """Return the foreign modules that the files of a folder import, each with one of the files."""
    found: dict[str, Path] = {}
    for file in sorted((REPOSITORY / folder).rglob("*.py")):
        for module in _modules(ast.parse(file.read_text(encoding="utf-8"))):
            if module not in sys.stdlib_module_names and module not in OURS:
                found.setdefault(module, file.relative_to(REPOSITORY))
    return found


def _modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def undeclared(folder: str, allowed: set[str]) -> dict[str, str]:
    return {
        module: str(file)
        for module, file in imported(folder).items()
        if not allowed.intersection(distributions().get(module, [canonicalize_name(module)]))
    }


def test_what_the_program_imports_is_declared() -> None:
    assert undeclared("ctnode", declared()) == {}


@pytest.mark.parametrize("folder", ["tests", "bench"])
def test_what_tests_and_benchmarks_import_is_declared(folder: str) -> None:
    # pytest brings packaging.
    extras = declared("test") | ({"packaging"} if folder == "tests" else declared("bench"))
    assert undeclared(folder, declared() | extras) == {}


def test_what_is_declared_is_imported() -> None:
    used = {name for module in imported("ctnode") for name in distributions().get(module, [module])}
    assert declared() - LOADED_BY_OTHERS - used == set()


def runtime() -> dict[str, metadata.Distribution]:
    """Return all distributions that an installation without extras brings, by name."""
    found: dict[str, metadata.Distribution] = {}
    wanted = sorted(declared())
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found[name] = metadata.distribution(name)
        for line in found[name].requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(canonicalize_name(requirement.name))
    return found


def licence(distribution: metadata.Distribution) -> str:
    """Return all that a distribution says of its licence, without the text itself."""
    said = distribution.metadata
    classifiers = [line for line in said.get_all("Classifier", []) if line.startswith("License ::")]
    first_line = (said.get("License") or "").strip().partition("\n")[0]
    return "; ".join(filter(None, [said.get("License-Expression") or "", *classifiers, first_line]))


def test_nothing_that_is_installed_is_under_the_gpl() -> None:
    licences = {name: licence(distribution) for name, distribution in runtime().items()}
    assert {name for name, said in licences.items() if not said} == set(), "no licence is named"
    # The LGPL is fine for an unmodified dependency, a choice beside the GPL is one, too.
    strict = {
        name: said
        for name, said in licences.items()
        if re.search(r"\bA?GPL|(?<!Lesser )(?<!Library )General Public License", said) and " OR " not in said
    }
    assert strict == {}


def test_version_is_that_of_the_package() -> None:
    import ctnode

    assert ctnode.__version__ == project()["version"]


def test_a_typed_package_says_so_to_type_checkers() -> None:
    assert "Typing :: Typed" in project()["classifiers"]
    assert (REPOSITORY / "ctnode" / "py.typed").is_file()
