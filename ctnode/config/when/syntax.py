"""Words, tree, parser and printer of ``when`` expressions.

::

    expression := conjunction ("or" conjunction)*
    conjunction := negation ("and" negation)*
    negation   := "not" negation | "(" expression ")" | "true" | "false" | "has" name | comparison
    comparison := name ("==" | "!=" | "<" | "<=" | ">" | ">=" | "contains" | "like") literal
                | name "in" "[" literal ("," literal)* "]"
    name       := word ("." word)* ["[" number "]"]
    literal    := "text" | 'text' | number
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from ctnode.config.when.names import WhenError

DEPTH_LIMIT: Final = 50
LENGTH_LIMIT: Final = 4000
COMPARISONS: Final = ("==", "!=", "<=", ">=", "<", ">", "contains", "like", "in")
_WORDS: Final = frozenset({"and", "or", "not", "has", "in", "contains", "like", "true", "false"})
# What the pattern below skips; Python strips more than that.
_SPACE: Final = " \t\n\r\f\v"
_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
      | (?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)
      | (?P<sign>==|!=|<=|>=|<|>|\(|\)|\[|\]|,)
      | (?P<end>$)
    )""",
    re.VERBOSE | re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Literal:
    """A text or a number, and where it stands."""

    value: str | float
    at: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Name:
    """An attribute or a fact; ``index`` picks one of several values, from 0."""

    word: str
    index: int | None = None
    at: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Truth:
    """``true`` or ``false``."""

    value: bool


@dataclass(frozen=True, slots=True)
class Has:
    """Whether there is a value."""

    name: Name


@dataclass(frozen=True, slots=True)
class Compare:
    """A name beside one literal, or several after ``in``."""

    name: Name
    sign: str
    literals: tuple[Literal, ...]
    at: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite."""

    part: Expression


@dataclass(frozen=True, slots=True)
class Chain:
    """Two or more parts joined by one word, ``and`` or ``or``."""

    word: str
    parts: tuple[Expression, ...]


Expression = Truth | Has | Compare | Not | Chain


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


def _tokens(source: str) -> Iterator[_Token]:
    position = 0
    while True:
        found = _TOKEN.match(source, position)
        if found is None:
            at = position + len(source[position:]) - len(source[position:].lstrip(_SPACE))
            what = "this text has no end" if source[at] in "\"'" else f"{source[at]!r} is no part of the language"
            raise WhenError(what, source, at)
        kind = str(found.lastgroup)
        text = found[kind]
        yield _Token("word" if kind == "name" and text in _WORDS else kind, text, found.start(kind))
        if kind == "end":
            return
        position = found.end()


def parse(source: str) -> Expression:
    """Return the tree of an expression; names and types are not looked at here.

    Raises
    ------
    WhenError
        With the position of what does not fit.
    """
    if len(source) > LENGTH_LIMIT:
        raise WhenError(f"longer than {LENGTH_LIMIT} characters", source, 0)
    parser = _Parser(source)
    found = parser.chain("or", 0)
    parser.expect("end", "", "here the expression should end, or go on with and, or")
    return found


class _Parser:
    def __init__(self, source: str) -> None:
        self.source = source
        self.tokens = list(_tokens(source))
        self.position = 0

    @property
    def token(self) -> _Token:
        return self.tokens[self.position]

    def take(self) -> _Token:
        token = self.token
        self.position += token.kind != "end"
        return token

    def follows(self, text: str) -> bool:
        return self.token.kind in {"word", "sign"} and self.token.text == text

    def expect(self, kind: str, text: str, message: str) -> _Token:
        if self.token.kind != kind or (text and self.token.text != text):
            raise WhenError(message, self.source, self.token.at)
        return self.take()

    def chain(self, word: str, depth: int) -> Expression:
        parts = [self.part(word, depth)]
        while self.follows(word):
            self.take()
            parts.append(self.part(word, depth))
        return parts[0] if len(parts) == 1 else Chain(word, tuple(parts))

    def part(self, word: str, depth: int) -> Expression:
        return self.chain("and", depth) if word == "or" else self.negation(depth)

    def negation(self, depth: int) -> Expression:
        if depth > DEPTH_LIMIT:
            raise WhenError(f"nested deeper than {DEPTH_LIMIT}", self.source, self.token.at)
        if self.follows("not"):
            self.take()
            return Not(self.negation(depth + 1))
        if self.follows("("):
            self.take()
            inner = self.chain("or", depth + 1)
            self.expect("sign", ")", "a ) is missing here")
            return inner
        if self.follows("true") or self.follows("false"):
            return Truth(self.take().text == "true")
        if self.follows("has"):
            self.take()
            return Has(self.name())
        return self.comparison()

    def name(self) -> Name:
        token = self.expect("name", "", "here a name should stand, such as Modality or verdict")
        index = None
        if self.follows("["):
            self.take()
            number = self.expect("number", "", "here the place of a value should stand, from 0")
            if not number.text.isdigit() or len(number.text) > 3:
                raise WhenError("the place of a value is a whole number from 0 to 999", self.source, number.at)
            index = int(number.text)
            self.expect("sign", "]", "a ] is missing here")
        return Name(token.text, index, token.at)

    def comparison(self) -> Compare:
        name = self.name()
        sign = self.token
        if sign.text not in COMPARISONS or sign.kind not in {"word", "sign"}:
            raise WhenError(f"after {name.word} one of {' '.join(COMPARISONS)} should stand", self.source, sign.at)
        self.take()
        if sign.text != "in":
            return Compare(name, sign.text, (self.literal(),), sign.at)
        self.expect("sign", "[", "after in a list should stand, such as [1, 2]")
        literals = [self.literal()]
        while self.follows(","):
            self.take()
            literals.append(self.literal())
        self.expect("sign", "]", "a ] is missing here")
        return Compare(name, "in", tuple(literals), sign.at)

    def literal(self) -> Literal:
        token = self.take()
        if token.kind == "text":
            return Literal(re.sub(r"\\(.)", r"\1", token.text[1:-1]), token.at)
        if token.kind == "number":
            return Literal(float(token.text), token.at)
        raise WhenError('here a number or a "text" should stand', self.source, token.at)


def show(expression: Expression) -> str:
    """Return the text of a tree; parsed again it gives the same tree."""
    match expression:
        case Truth(value):
            return "true" if value else "false"
        case Has(name):
            return f"has {_show_name(name)}"
        case Not(part):
            return f"not {_within(part)}"
        case Chain(word, parts):
            return f" {word} ".join(map(_within, parts))
        case Compare(name, sign, literals):
            shown = ", ".join(map(_show_literal, literals))
            return f"{_show_name(name)} {sign} {f'[{shown}]' if sign == 'in' else shown}"


def _within(part: Expression) -> str:
    return f"({show(part)})" if isinstance(part, Chain) else show(part)


def _show_name(name: Name) -> str:
    return name.word if name.index is None else f"{name.word}[{name.index}]"


def _show_literal(literal: Literal) -> str:
    if isinstance(literal.value, str):
        return '"' + literal.value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(int(literal.value)) if literal.value.is_integer() else repr(literal.value)


def names_of(expression: Expression) -> Iterator[Name]:
    """Yield every name, from left to right."""
    match expression:
        case Has(name) | Compare(name, _, _):
            yield name
        case Not(part):
            yield from names_of(part)
        case Chain(_, parts):
            for part in parts:
                yield from names_of(part)
