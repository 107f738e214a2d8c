"""The inner ASGI layer: who asks, whether they may, and whether a change was really asked for from our own page."""

from __future__ import annotations

from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ctnode.web.context import WebNode
from ctnode.web.sessions import COOKIE, new_cookie
from ctnode.web.users import Role, User

# What anybody may ask: the login with its style, and whether the role lives. Nothing of these tells of a series.
PUBLIC: Final = frozenset({"/login", "/livez", "/readyz"})
STATIC: Final = "/static/"
# Programs ask here; they get an answer in JSON and no login page.
PROGRAMS: Final = ("/api/", "/dicom-web", "/events", "/livez", "/readyz", "/metrics")
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
CSRF_HEADER: Final = "x-csrf-token"
CSRF_FIELD: Final = "csrf"
LOCAL_NAME: Final = "local"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks.

    Parameters
    ----------
    name
        The user, or ``local`` where nobody has to log in.
    role
        What they may do.
    cookie
        The value of their cookie; empty for a program with a token.
    csrf
        What their forms have to bring along.
    """

    name: str
    role: Role
    cookie: str
    csrf: str

    @property
    def may_operate(self) -> bool:
        """Return whether they may act."""
        return self.role is Role.OPERATE


def principal_of(request: Request) -> Principal | None:
    """Return who asks; None on the public pages, where nobody has to say."""
    found = request.scope.get("state", {}).get("principal")
    return found if isinstance(found, Principal) else None


def cookie_secure(node: WebNode) -> bool:
    """Return whether cookies go over TLS only."""
    return bool(node.config.web.certificate) or node.config.web.behind_proxy


def set_cookie(response: Response, node: WebNode, value: str) -> None:
    """Give the browser its session, which no script reads and no other site's request carries."""
    response.set_cookie(COOKIE, value, path="/", httponly=True, samesite="strict", secure=cookie_secure(node))


class Guard:
    """Lets nobody in who has no business, before any page is asked.

    Changing requests with a cookie have to come from our own page (Sec-Fetch-Site, Origin) and, below ``/api/``, to
    carry the session's token in a header; the forms of the page carry it in a field, which ``actions`` checks.
    """

    def __init__(self, app: ASGIApp, node: WebNode) -> None:
        self._app = app
        self._node = node

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        path = scope["path"]
        cookie = _cookie_of(headers)
        is_public = path in PUBLIC or path.startswith(STATIC)
        principal = None if path.startswith(STATIC) else self._identify(headers, cookie)
        refusal = None
        if principal is None and not is_public:
            refusal = self._unknown(path, scope["method"])
        elif scope["method"] not in SAFE:
            refusal = self._forged(headers, path, principal)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        scope.setdefault("state", {})["principal"] = principal
        is_new = principal is not None and bool(principal.cookie) and principal.cookie != cookie
        await self._app(scope, receive, self._sending(send, principal.cookie) if principal and is_new else send)

    def _identify(self, headers: Headers, cookie: str) -> Principal | None:
        node = self._node
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and not node.users.is_open:
            user = node.users.with_token(token.strip())
            return Principal(user.name, user.role, "", "") if user is not None else None
        if node.users.is_open:
            # Nobody has a name; the cookie only ties forms to the browser that asked for them.
            value = cookie or new_cookie()
            return Principal(LOCAL_NAME, Role.OPERATE, value, node.sessions.csrf_of(value))
        user = self._logged_in(cookie)
        if user is None:
            return None
        return Principal(user.name, user.role, cookie, node.sessions.csrf_of(cookie))

    def _logged_in(self, cookie: str) -> User | None:
        """Return who holds a session, as the file has them now: who was taken out of it is out."""
        name = self._node.sessions.user_of(cookie) if cookie else None
        return self._node.users.find(name) if name is not None else None

    def _unknown(self, path: str, method: str) -> Response:
        if path.startswith(PROGRAMS) or method not in SAFE:
            return JSONResponse(
                {"error": "log in first", "hint": "Authorization: Bearer TOKEN, see `ctnode user --token`"},
                401,
                {"www-authenticate": "Bearer"},
            )
        return RedirectResponse(f"/login?next={quote(path)}", 303)

    def _forged(self, headers: Headers, path: str, principal: Principal | None) -> Response | None:
        """Return the refusal of a change that another site may have caused, or that this user may not make."""
        site = headers.get("sec-fetch-site")
        origin = headers.get("origin")
        is_foreign = site not in {None, "same-origin", "none"}
        if origin is not None and not is_foreign:
            is_foreign = urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
        if is_foreign:
            return JSONResponse({"error": "this was asked for from another site"}, 403)
        if principal is None:
            return None
        if not principal.may_operate and path != "/logout":
            return JSONResponse({"error": f"{principal.name} may look, and not act"}, 403)
        if path.startswith("/api/") and principal.cookie and not self._is_own_call(headers, principal):
            return JSONResponse(
                {"error": f"the {CSRF_HEADER} header is missing or not of this session", "hint": "reload the page"}, 403
            )
        return None

    def _is_own_call(self, headers: Headers, principal: Principal) -> bool:
        """Return whether a script of our page, or a program that can set headers, made this call."""
        token = headers.get(CSRF_HEADER, "")
        if self._node.users.is_open and COOKIE not in headers.get("cookie", ""):
            # A browser sends such a header to another origin only after asking, and is never allowed to.
            return bool(token)
        return self._node.sessions.is_ours(principal.cookie, token)

    def _sending(self, send: Send, cookie: str) -> Send:
        async def wrapped(message: Message) -> None:
            if message["type"] == "http.response.start":
                carrier = Response()
                set_cookie(carrier, self._node, cookie)
                MutableHeaders(scope=message).append("set-cookie", carrier.headers["set-cookie"])
            await send(message)

        return wrapped


def _cookie_of(headers: Headers) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel is not None else ""
