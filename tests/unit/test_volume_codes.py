"""docs/volume.md lists every code that a volume can carry, and none that does not exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import ctnode

pytestmark = pytest.mark.unit

PACKAGE = Path(ctnode.__file__).parent
DOCUMENT = PACKAGE.parent / "docs" / "volume.md"
CODE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+|[A-Z]{4,}")

# Upper-case words in these modules that are no codes: header values, states, transfer syntaxes.
SOURCES = [*sorted((PACKAGE / "ct").glob("*.py")), *(PACKAGE / "flow" / f"{name}.py" for name in (
    "pipeline", "products", "workshop", "child", "offline",
))]  # fmt: skip


def strings(node: ast.AST | None) -> set[str]:
    found = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)] if node is not None else []
    return {text for text in found if isinstance(text, str) and CODE.fullmatch(text)}


def codes(source: str) -> set[str]:
    """Return the codes that are made: first argument of Issue, ``code=`` of a refusal, tuples that become issues."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name == "Issue" and node.args:
                found |= strings(node.args[0])
            if name == "add" and node.args:
                found |= strings(node.args[0])
            for keyword in node.keywords:
                if keyword.arg == "code":
                    found |= strings(keyword.value)
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            found |= {
                text for key, value in pairs if isinstance(key, ast.Constant) and key.value == "code"
                for text in strings(value)
            }  # fmt: skip
        if (
            isinstance(node, (ast.Return, ast.Assign))
            and isinstance(node.value, ast.Tuple)
            and len(node.value.elts) == 2
        ):
            found |= strings(node.value.elts[0])
    return found


def test_the_document_lists_the_codes():
    made = set().union(*(codes(path.read_text()) for path in SOURCES))
    section = DOCUMENT.read_text().split("## Codes")[1].split("## Transfer")[0]
    listed = {
        word
        for line in section.splitlines()
        if line.startswith("| `")
        for word in re.findall(r"`([A-Z_]+)`", line.split("|")[1])
    }
    assert made - listed == set(), "not in docs/volume.md"
    assert listed - made == set(), "in docs/volume.md only"
