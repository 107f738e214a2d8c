"""Who gets in and who does not: users, sessions, forged requests, foreign names, floods."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from ctnode.cli import cli
from ctnode.config import Config
from ctnode.ops import audit
from ctnode.web import shield, users
from ctnode.web.access import is_our_name, require_access
from ctnode.web.app import make_app, routes
from ctnode.web.sessions import FREE_TRIES, Sessions
from ctnode.web.users import Role, Users, password_line, read_users, token_line
from ctnode.words import ConfigError
from tests.archive_root import stack
from tests.web_root import BASE, Site

pytestmark = pytest.mark.integration

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def cheap_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let scrypt cost nothing: what it costs is no matter of these tests."""
    monkeypatch.setattr(users, "_N", 16)


@pytest.fixture
def lines() -> dict[str, str]:
    """Return the lines of two people and two programs; scrypt is slow on purpose, here it is not."""
    reader, read_token = token_line("reader", Role.VIEW)
    robot, robot_token = token_line("robot", Role.OPERATE)
    return {
        "alice": password_line("alice", Role.OPERATE, PASSWORD),
        "bob": password_line("bob", Role.VIEW, PASSWORD),
        "reader": reader, "robot": robot, "read_token": read_token, "robot_token": robot_token,
    }  # fmt: skip


@pytest.fixture
def site(tmp_path: Path, lines: dict[str, str]) -> Iterator[Site]:
    file = tmp_path / "users"
    file.write_text("# who\n" + "\n".join(lines[name] for name in ("alice", "bob", "reader", "robot")) + "\n")
    made = Site(tmp_path, web={"users": str(file), "names": ["page.example"]})
    made.root.hold(*stack(2))
    yield made
    made.close()


def log_in(site: Site, name: str = "alice", **fields: str) -> TestClient:
    client = site.browser()
    answer = client.post("/login", data={"name": name, "password": PASSWORD, **fields})
    assert answer.status_code == 303, answer.text
    return client


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def every_route(site: Site) -> Iterator[tuple[str, str]]:
    for route in routes(site.node):
        if isinstance(route, Mount) and route.path == "/static":
            continue
        assert isinstance(route, Route | Mount)
        path = route.path
        for name in ("series_id", "number", "revision"):
            path = path.replace(f"{{{name}:int}}", "1")
        path = path.replace("{kind}", "series").replace("{verb}", "requeue").replace("{name}", "x.png")
        for method in sorted((getattr(route, "methods", None) or {"GET"}) - {"HEAD"}):
            yield method, path


def test_nothing_but_health_and_the_login_answers_a_stranger(site: Site) -> None:
    client, told = site.browser(), {}
    for method, path in every_route(site):
        told[method, path] = client.request(method, path).status_code
    public = {("GET", "/livez"), ("GET", "/readyz"), ("GET", "/login"), ("POST", "/login")}
    assert {call: code for call, code in told.items() if call not in public and code not in {303, 401}} == {}
    assert len(told) > 25


def test_every_change_needs_the_token_of_its_session(site: Site) -> None:
    client = log_in(site)
    changes = [path for method, path in every_route(site) if method == "POST" and path != "/login"]
    assert len(changes) > 8
    for path in changes:
        assert client.post(path).status_code == 403, path
        wrong = client.post(path, data={"csrf": "0" * 64}, headers={"x-csrf-token": "0" * 64})
        assert wrong.status_code == 403, path
    other = log_in(site, "bob")
    stolen = client.post("/act/series/1/hold", data={"csrf": site.csrf(other)})
    assert stolen.status_code == 403
    assert site.root.one("SELECT hold FROM series") == ""
    assert client.post("/act/series/1/hold", data={"csrf": site.csrf(client)}).status_code == 303


def test_what_another_site_asks_for_is_refused_even_with_the_token(site: Site) -> None:
    client = log_in(site)
    for headers in (
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
    ):
        answer = client.post("/act/series/1/hold", data={"csrf": site.csrf(client)}, headers=headers)
        assert answer.status_code == 403, headers
    assert site.root.one("SELECT hold FROM series") == ""


def test_who_may_look_may_not_act(site: Site, lines: dict[str, str]) -> None:
    client = log_in(site, "bob")
    page = client.get("/series/1").text
    assert "/act/series" not in page
    assert client.post("/act/series/1/hold", data={"csrf": site.csrf(client)}).status_code == 403
    program = site.browser()
    assert program.get("/api/v1/series", headers=bearer(lines["read_token"])).status_code == 200
    assert program.post("/api/v1/series/1/hold", headers=bearer(lines["read_token"])).status_code == 403
    done = program.post("/api/v1/series/1/hold", headers=bearer(lines["robot_token"]))
    assert done.json() == {"done": "revision 1 is held"}
    assert site.root.one("SELECT text FROM timeline WHERE kind = 'operator'") == "held by robot on the page"
    assert program.get("/api/v1/series", headers=bearer("x" * 43)).status_code == 401


def test_a_session_is_a_cookie_that_no_script_and_no_other_site_gets(site: Site) -> None:
    answer = site.browser().post("/login", data={"name": "alice", "password": PASSWORD})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    web = {**site.config.web.model_dump(), "behind_proxy": True}
    site.node = replace(site.node, config=Config.model_validate({**site.config.model_dump(), "web": web}))
    behind = site.browser("https://page.example").post("/login", data={"name": "alice", "password": PASSWORD})
    assert "secure" in behind.headers["set-cookie"].lower()
    assert behind.headers["strict-transport-security"]


def test_a_session_ends_by_log_out_and_when_its_user_is_taken_out(site: Site, tmp_path: Path) -> None:
    client = log_in(site)
    assert client.post("/logout", data={"csrf": site.csrf(client)}).status_code == 303
    assert client.get("/").headers["location"] == "/login?next=/"
    client = log_in(site)
    file = tmp_path / "users"
    file.write_text("\n".join(line for line in file.read_text().splitlines() if not line.startswith("alice")))
    os.utime(file, (1, 1))
    assert client.get("/").status_code == 303


def test_the_login_leads_only_to_places_of_this_page(site: Site) -> None:
    for wanted, place in (
        ("/series/1", "/series/1"),
        ("//evil.example", "/"),
        ("https://evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/a\r\nset-cookie: x", "/"),
        ("", "/"),
    ):
        answer = site.browser().post("/login", data={"name": "alice", "password": PASSWORD, "next": wanted})
        assert answer.headers["location"] == place, wanted


def test_wrong_passwords_wait_longer_each_time() -> None:
    now = [0.0]
    sessions = Sessions(clock=lambda: now[0])
    waits = []
    for _ in range(FREE_TRIES + 4):
        sessions.failed("10.0.0.1")
        waits.append(sessions.wait_s("10.0.0.1"))
    assert waits == [0.0] * (FREE_TRIES - 1) + [2.0, 4.0, 8.0, 16.0, 32.0]
    assert sessions.wait_s("10.0.0.2") == 0.0
    now[0] = 33.0
    assert sessions.wait_s("10.0.0.1") == 0.0
    sessions.succeeded("10.0.0.1")
    sessions.failed("10.0.0.1")
    assert sessions.wait_s("10.0.0.1") == 0.0


def test_a_flood_of_tries_is_answered_without_looking_at_the_password(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Users, "with_password", lambda _self, name, _password: asked.append(name))
    client = site.browser()
    codes = [client.post("/login", data={"name": "alice", "password": "guess"}).status_code for _ in range(9)]
    assert codes == [401] * FREE_TRIES + [429] * (9 - FREE_TRIES)
    assert len(asked) == FREE_TRIES


def test_another_address_of_the_same_ipv6_network_has_no_further_tries(site: Site) -> None:
    app = make_app(site.node)
    clients = [TestClient(app, BASE, client=(f"2001:db8:1:2::{number}", 1)) for number in range(FREE_TRIES + 1)]
    codes = [client.post("/login", data={"name": "alice", "password": "guess"}).status_code for client in clients]
    assert codes == [401] * FREE_TRIES + [429]
    elsewhere = TestClient(app, BASE, client=("2001:db8:1:3::1", 1))
    assert elsewhere.post("/login", data={"name": "alice", "password": "guess"}).status_code == 401


def test_who_looks_at_a_series_is_news_once_an_hour() -> None:
    now = [0.0]
    sessions = Sessions(clock=lambda: now[0])
    assert [sessions.is_news("alice", "1.2.3") for _ in range(3)] == [True, False, False]
    assert sessions.is_news("bob", "1.2.3")
    now[0] = 3600.0
    assert sessions.is_news("alice", "1.2.3")


def test_an_expired_session_is_none() -> None:
    now = [0.0]
    sessions = Sessions(clock=lambda: now[0])
    cookie = sessions.open("alice", 10.0)
    assert sessions.user_of(cookie) == "alice"
    now[0] = 10.0
    assert sessions.user_of(cookie) is None


# ------------------------------------------------------------------------------------------------ names and sizes


def test_a_page_answers_only_under_its_own_names(site: Site) -> None:
    client = site.browser()
    for host, is_ours in (
        ("127.0.0.1:8112", True),
        ("[::1]:8112", True),
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("10.1.2.3", True),
        ("page.example:443", True),
        ("page.example.", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("page.example@evil.example", False),
        ("evil.example:127.0.0.1", False),
    ):
        assert is_our_name(host, ["page.example"]) is is_ours, host
        assert (client.get("/livez", headers={"host": host}).status_code != 421) is is_ours, host
    assert not is_our_name("", ["page.example"])


def test_what_is_too_large_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    client = site.browser()
    assert client.get("/livez", headers={f"x-{number}": "1" for number in range(120)}).status_code == 431
    assert client.get("/livez", headers={"x-long": "a" * 40000}).status_code == 431
    assert client.post("/login", content=b"", headers={"content-length": str(4 << 30)}).status_code == 413
    assert client.post("/login", content=b"", headers={"content-length": "-1"}).status_code == 413
    monkeypatch.setattr(shield, "BODY_LIMIT_BYTES", 1000)
    monkeypatch.setattr("ctnode.web.app.BODY_LIMIT_BYTES", 1000)

    def drip() -> Iterator[bytes]:
        for _ in range(100):
            yield b"name=x&" * 10

    # Nothing was announced: it is cut off while it comes.
    assert site.browser(raises=False).post("/login", content=drip()).status_code == 413


def test_every_answer_carries_the_policy(site: Site) -> None:
    client = site.browser()
    for path in ("/login", "/static/page.js", "/nowhere", "/api/v1/now", "/livez"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert "unsafe" not in headers["content-security-policy"], path
        assert headers["referrer-policy"] == "same-origin", path


# ------------------------------------------------------------------------------------------------- where it may be


def web(**keys: Any) -> Config:
    return Config.model_validate({"web": keys})


def test_an_address_that_others_reach_needs_users_and_tls_or_a_proxy(tmp_path: Path, lines: dict[str, str]) -> None:
    file, pem = tmp_path / "users", tmp_path / "page.pem"
    file.write_text(lines["alice"])
    pem.write_text("")
    require_access(web())
    require_access(web(host="0.0.0.0", enabled=False))
    require_access(web(host="0.0.0.0", users=str(file), certificate=str(pem)))
    require_access(web(host="0.0.0.0", users=str(file), behind_proxy=True))
    for keys in (
        {"host": "0.0.0.0"},
        {"host": "::"},
        {"host": "0.0.0.0", "certificate": str(pem)},
        {"host": "0.0.0.0", "behind_proxy": True},
        {"host": "0.0.0.0", "users": str(file)},
        {"behind_proxy": True},
        {"host": "no.such.name.invalid"},
        {"host": "0.0.0.0", "users": str(file), "certificate": str(tmp_path / "none.pem")},
    ):
        with pytest.raises(ConfigError, match=r"web\.(users|certificate)"):
            require_access(web(**keys))
    # What counts is where the socket is bound, whatever the name said.
    with pytest.raises(ConfigError):
        require_access(web(), "192.0.2.1")


@pytest.mark.parametrize(
    "text", ["alice", "alice operate", "alice king scrypt:1", "alice view md5:1", "a/b view sha256:1", "é"]
)
def test_a_line_of_the_users_that_is_wrong_is_named_without_its_secret(tmp_path: Path, text: str) -> None:
    file = tmp_path / "users"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as raised:
        read_users(file)
    assert "scrypt" not in raised.value.message


def test_a_cost_that_would_fill_the_memory_is_not_computed(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text("alice operate scrypt:1073741824:8:1:AAAA:AAAA\n")
    assert Users(str(file)).with_password("alice", PASSWORD) is None


def test_the_command_writes_and_removes_lines(tmp_path: Path) -> None:
    file = tmp_path / "users"
    (tmp_path / "config.toml").write_text(f'[storage]\nroot = "{tmp_path}"\n[web]\nusers = "{file}"\n')
    base = ["--config", str(tmp_path / "config.toml"), "user"]

    def run(*words: str, typed: str = "") -> Any:
        return CliRunner().invoke(cli, [*base, *words], input=typed)

    assert run("alice", typed=f"{PASSWORD}\n").exit_code == 0
    token = run("robot", "--role", "view", "--token").stdout.strip()
    assert file.stat().st_mode & 0o077 == 0
    known = Users(str(file))
    found = known.with_password("alice", PASSWORD)
    assert found is not None
    assert found.role is Role.OPERATE
    assert known.with_password("alice", PASSWORD + "x") is None
    program = known.with_token(token)
    assert program is not None
    assert program.role is Role.VIEW
    assert token not in file.read_text()
    assert run("alice", "--remove").exit_code == 0
    assert list(read_users(file)) == ["robot"]
    assert isinstance(run("bob", typed="short\n").exception, ConfigError)


def test_the_trail_names_who_logged_in_and_what_they_did(site: Site) -> None:
    site.root.hold(*stack(3))
    client = site.browser()
    assert client.post("/login", data={"name": "Mallory^Typed", "password": "wrong"}).status_code == 401
    client = log_in(site)
    number = site.root.one("SELECT max(id) FROM series")
    page = client.get("/upload").text
    found = re.search(r'<meta name="csrf" content="([0-9a-f]+)">', page)
    assert found is not None
    assert client.post(f"/act/series/{number}/hold", data={"csrf": found[1], "reason": "x"}).status_code == 303
    entries = [(one["who"], one["what"], one["outcome"]) for one in audit.read(site.config.root)]
    assert entries == [("unknown", "login", 4), ("alice", "login", 0), ("alice", "hold", 0)]
    for _ in range(3):
        client.get("/dicom-web/studies/1.2.3/series/1.2.3.1/metadata")
    (looked,) = [one for one in audit.read(site.config.root) if one["event"] == "DICOM Instances Accessed"][1:]
    assert (looked["who"], looked["what"], looked["series"]) == ("alice", "DICOMweb", ["1.2.3.1"])
    assert "Mallory" not in str(list(audit.read(site.config.root)))
