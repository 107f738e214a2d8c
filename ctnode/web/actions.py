"""What an operator does from the page: log in and out, and the forms, each with the token of its session."""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import parse_qs, quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from ctnode.web.connections import network_of
from ctnode.web.context import WebNode
from ctnode.web.deeds import DEEDS, ask, do, note_login, note_upload
from ctnode.web.forms import NOT_OURS
from ctnode.web.guard import CSRF_FIELD, principal_of, set_cookie
from ctnode.web.rendering import Renderer
from ctnode.web.sessions import COOKIE
from ctnode.web.upload import FORM_PATH, Uploads

FIELDS_LIMIT: Final = 200


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form, the first of each name."""
    text = (await request.body()).decode("utf-8", "replace")
    try:
        fields = parse_qs(text, keep_blank_values=True, max_num_fields=FIELDS_LIMIT)
    except ValueError:
        raise HTTPException(400, "the form has too many fields") from None
    return {name: values[0] for name, values in fields.items()}


async def read_own_form(node: WebNode, request: Request) -> dict[str, str]:
    """Return the fields of a form that one of our pages made for this session, else refuse."""
    form = await read_form(request)
    who = principal_of(request)
    if who is None or not who.cookie or not node.sessions.is_ours(who.cookie, form.get(CSRF_FIELD, "")):
        raise HTTPException(403, NOT_OURS)
    return form


def action_routes(node: WebNode, renderer: Renderer) -> list[BaseRoute]:
    """Return the login and the forms."""
    uploads = Uploads(node)

    async def login(request: Request) -> Response:
        if node.users.is_open or principal_of(request) is not None:
            return RedirectResponse("/", 303)
        wanted = _own_path(request.query_params.get("next", "/"))
        if request.method == "GET":
            return renderer.page(request, "login.html", next=wanted, words="")
        form = await read_form(request)
        address = _address_of(node, request)
        # With IPv6 one client has a whole network of addresses to try from.
        tries = network_of(address)
        wait_s = node.sessions.wait_s(tries)
        if wait_s > 0:
            words = f"too many wrong passwords; try again in {wait_s:.0f} s"
            answer = renderer.page(request, "login.html", next=wanted, words=words)
            answer.status_code = 429
            answer.headers["retry-after"] = f"{wait_s:.0f}"
            return answer
        user = await asyncio.to_thread(node.users.with_password, form.get("name", ""), form.get("password", ""))
        if user is None:
            node.sessions.failed(tries)
            node.log.warning("login failed", address=address)
            await asyncio.to_thread(note_login, node, "", address)
            answer = renderer.page(request, "login.html", next=wanted, words="name or password is wrong")
            answer.status_code = 401
            return answer
        node.sessions.succeeded(tries)
        node.log.info("logged in", address=address, reason=user.name)
        await asyncio.to_thread(note_login, node, user.name, address)
        response = RedirectResponse(_own_path(form.get("next", wanted)), 303)
        set_cookie(response, node, node.sessions.open(user.name, node.config.web.session_s))
        return response

    async def logout(request: Request) -> Response:
        await read_own_form(node, request)
        who = principal_of(request)
        assert who is not None
        node.sessions.close(who.cookie)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return response

    async def deed(request: Request) -> Response:
        form = await read_own_form(node, request)
        kind, verb, number = (request.path_params[name] for name in ("kind", "verb", "number"))
        who = principal_of(request)
        if who is None or verb not in DEEDS.get(kind, {}):
            raise HTTPException(404, "nothing of this kind can be done")
        words = await asyncio.to_thread(do, node, kind, verb, number, who, form.get("reason", ""))
        back = _own_path(form.get("back", "/"))
        return RedirectResponse(f"{back}{'&' if '?' in back else '?'}said={quote(words)}", 303)

    async def echo(request: Request) -> Response:
        await read_own_form(node, request)
        who = principal_of(request)
        assert who is not None
        name = request.path_params["name"]
        result = await asyncio.to_thread(ask, node, name, who)
        return renderer.page(request, "echo.html", name=name, result=result)

    async def upload(request: Request) -> Response:
        """Take the files of the form where no script sends them."""
        who = principal_of(request)
        assert who is not None
        taken = await uploads.take_form(request, CSRF_FIELD, lambda token: node.sessions.is_ours(who.cookie, token))
        await asyncio.to_thread(note_upload, node, taken.imported, who)
        return renderer.page(request, "upload.html", limit_mb=node.config.web.max_upload_mb, taken=taken)

    return [
        Route(FORM_PATH, upload, methods=["POST"]),
        Route("/login", login, methods=["GET", "POST"]),
        Route("/logout", logout, methods=["POST"]),
        Route("/act/{kind}/{number:int}/{verb}", deed, methods=["POST"]),
        Route("/echo/{name}", echo, methods=["POST"]),
    ]


def _own_path(path: str) -> str:
    """Return where to go after the login, if it is a place of this page, else its beginning."""
    is_own = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and "\\" not in path
    return path if is_own else "/"


def _address_of(node: WebNode, request: Request) -> str:
    """Return who tries; behind a proxy, whom the proxy names last."""
    if node.config.web.behind_proxy:
        named = request.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
        if named:
            return named[:64]
    return request.client.host if request.client is not None else ""
