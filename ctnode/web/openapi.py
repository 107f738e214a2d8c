"""The description of the API (OpenAPI 3.1), made of the same table as its routes: the two cannot drift apart."""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from enum import StrEnum
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ctnode import __version__

Handler = Callable[[Request], Response] | Callable[[Request], Awaitable[Response]]
Schema = dict[str, Any]

TIME: Final[Schema] = {"type": "string", "description": "UTC, ISO 8601; empty if it has not happened"}
ERROR: Final[Schema] = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}, "hint": {"type": "string"}},
}
_BINARY: Final[Schema] = {"schema": {"type": "string", "format": "binary", "minLength": 1}}
_PLAIN: Final[Mapping[object, str]] = {int: "integer", float: "number", str: "string", bool: "boolean"}


# What any call can be answered: not logged in, another host's name, too large a head, and the index out of reach.
_ALWAYS: Final = (401, 421, 431, 503)
_MEANINGS: Final[Mapping[int, str]] = {
    400: "something asked for is not as described here",
    401: "the token or session is missing or not known",
    403: "this user may not act, or another site asked",
    404: "there is none",
    409: "its state does not allow it",
    413: "the body is too large",
    421: "the node is not served under this name",
    431: "too many or too long headers",
    503: "the index cannot be read at the moment",
    507: "the storage takes nothing at the moment",
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a query; a whole number from ``least`` to ``most``, one of ``words``, or a text."""

    name: str
    meaning: str
    kind: str = "string"
    words: tuple[str, ...] = ()
    least: int = 0
    most: int = (1 << 63) - 1

    @property
    def schema(self) -> Schema:
        """Return what it may be."""
        if self.kind == "integer":
            return {"type": "integer", "minimum": self.least, "maximum": self.most}
        return {"type": self.kind} | ({"enum": list(self.words)} if self.words else {})

    def fault(self, text: str) -> str:
        """Return what is wrong with a value, without repeating it; empty if nothing is."""
        if self.words:
            return "" if text in self.words else f"{self.name} is none of {', '.join(self.words)}"
        if self.kind != "integer":
            return ""
        is_number = text.isascii() and text.isdigit() and len(text) < 20
        is_fine = is_number and self.least <= int(text) <= self.most
        return "" if is_fine else f"{self.name} is no whole number from {self.least} to {self.most}"


@dataclass(frozen=True, slots=True)
class Call:
    """One thing that a program can ask or do.

    Parameters
    ----------
    path
        As Starlette writes it, ``{number:int}``.
    answer
        The schema of the JSON answer; the media types it can have for a file.
    body
        The schema of a JSON body, or the media type of another one.
    refusals
        Statuses of errors beside those that follow from method and path.
    """

    method: str
    path: str
    meaning: str
    handler: Handler
    answer: Schema | tuple[str, ...]
    query: tuple[Parameter, ...] = ()
    body: Schema | str | None = None
    refusals: tuple[int, ...] = ()

    @property
    def statuses(self) -> tuple[int, ...]:
        """Return the statuses of its errors."""
        found = {*_ALWAYS, *self.refusals, 400}
        found |= {403, 413} if self.method == "POST" else set()
        return tuple(sorted(found | ({404} if "{" in self.path else set())))

    def require(self, asked: QueryParams) -> None:
        """Refuse a query that is not as described: a filter that is misspelt must not list everything.

        Raises
        ------
        HTTPException
            With 400, for a parameter that is not known, that comes twice, or whose value it cannot have.
        """
        known = {one.name: one for one in self.query}
        pairs = asked.multi_items()
        if len(dict(pairs)) < len(pairs):
            raise HTTPException(400, "a parameter is given twice")
        for name, text in pairs:
            if name not in known:
                raise HTTPException(400, f"a parameter is not known; there are: {', '.join(known) or 'none'}")
            fault = known[name].fault(text)
            if fault:
                raise HTTPException(400, fault)


def record(kind: type, *, times: Sequence[str] = (), more: Mapping[str, Schema] | None = None) -> Schema:
    """Return the schema of a frozen record whose times (``..._at``, ``at``, ``deadline``) are written as ISO 8601."""
    hints = get_type_hints(kind)
    properties = {
        name: TIME if name == "at" or name.endswith("_at") or name in {"deadline", *times} else _of(hint)
        for name, hint in hints.items()
    }
    properties |= more or {}
    return {
        "type": "object",
        "required": sorted(properties),
        "properties": properties,
        "additionalProperties": False,
    }


def items(schema: Schema, *, more: Mapping[str, Schema] | None = None, name: str = "items") -> Schema:
    """Return the schema of a list in an object."""
    properties = {name: {"type": "array", "items": schema}, **(more or {})}
    return {"type": "object", "required": sorted(properties), "properties": properties}


def _of(hint: Any) -> Schema:
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [{"type": "null"} if one is type(None) else _of(one) for one in arguments]}
    if origin is tuple:
        return {"type": "array", "items": _of(arguments[0])}
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return {"type": "string", "enum": [str(one) for one in hint]}
    if is_dataclass(hint) and isinstance(hint, type):
        return record(hint)
    return {"type": "object"}


def describe(calls: Sequence[Call]) -> Schema:
    """Return the description of all calls."""
    paths: dict[str, Schema] = {}
    for call in calls:
        path, numbers, names = _path(call.path)
        operation: Schema = {
            "summary": call.meaning,
            "operationId": f"{call.method.lower()}{path.replace('/', '_').replace('{', '').replace('}', '')}",
            "parameters": [
                *(
                    {"name": n, "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}}
                    for n in numbers
                ),
                *({"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names),
                *map(_parameter, call.query),
            ],
            "responses": {
                "200": _answer(call.answer),
                **{str(one): {"description": _MEANINGS[one], "content": _json(ERROR)} for one in call.statuses},
            },
        }
        if call.body is not None:
            content = {call.body: _BINARY} if isinstance(call.body, str) else _json(call.body)
            operation["requestBody"] = {"content": content, "required": isinstance(call.body, str)}
        paths.setdefault(path, {})[call.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "ctnode", "version": __version__, "description": "Research use only, not a medical device."},
        "security": [{"token": []}, {"session": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": "ctnode_session"},
            }
        },
    }


def _path(path: str) -> tuple[str, list[str], list[str]]:
    """Return a path as OpenAPI writes it, with its parameters that are numbers and those that are texts."""
    numbers: list[str] = []
    names: list[str] = []
    parts: list[str] = []
    for part in path.split("/"):
        inside = part[part.find("{") + 1 : -1] if part.endswith("}") else ""
        name, _, kind = inside.partition(":")
        if name:
            (numbers if kind == "int" else names).append(name)
        parts.append(part.replace(":int", ""))
    return "/".join(parts), numbers, names


def _parameter(one: Parameter) -> Schema:
    return {"name": one.name, "in": "query", "required": False, "description": one.meaning, "schema": one.schema}


def _answer(schema: Schema | tuple[str, ...]) -> Schema:
    if isinstance(schema, tuple):
        return {"description": "the file", "content": {media: {} for media in schema}}
    return {"description": "the answer", "content": _json(schema)}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}
