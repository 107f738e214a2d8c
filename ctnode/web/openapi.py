"""The description of the API (OpenAPI 3.1), made of the same table as its routes: the two cannot drift apart."""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from enum import StrEnum
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

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
_PLAIN: Final[Mapping[object, str]] = {int: "integer", float: "number", str: "string", bool: "boolean"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a query."""

    name: str
    meaning: str
    kind: str = "string"
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """One thing that a program can ask or do.

    Parameters
    ----------
    path
        As Starlette writes it, ``{number:int}``.
    answer
        The schema of the JSON answer; None for a file.
    body
        The schema of a JSON body, or the media type of another one.
    """

    method: str
    path: str
    meaning: str
    handler: Handler
    answer: Schema | None
    query: tuple[Parameter, ...] = ()
    body: Schema | str | None = None


def record(kind: type, *, times: Sequence[str] = (), more: Mapping[str, Schema] | None = None) -> Schema:
    """Return the schema of a frozen record whose times (``..._at``, ``at``, ``deadline``) are written as ISO 8601."""
    hints = get_type_hints(kind)
    properties = {
        name: TIME if name == "at" or name.endswith("_at") or name in {"deadline", *times} else _of(hint)
        for name, hint in hints.items()
    }
    properties |= more or {}
    return {"type": "object", "required": sorted(properties), "properties": properties}


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
                "default": {"description": "what is wrong, and what to do", "content": _json(ERROR)},
            },
        }
        if call.body is not None:
            content = {call.body: {}} if isinstance(call.body, str) else _json(call.body)
            operation["requestBody"] = {"content": content}
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
    schema: Schema = {"type": one.kind}
    if one.words:
        schema["enum"] = list(one.words)
    return {"name": one.name, "in": "query", "required": False, "description": one.meaning, "schema": schema}


def _answer(schema: Schema | None) -> Schema:
    if schema is None:
        return {"description": "the file", "content": {"application/octet-stream": {}}}
    return {"description": "the answer", "content": _json(schema)}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}
