"""The access table of docs/api.md, row by row, over real connections; callers from elsewhere at the gate itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tornado.httputil import HTTPHeaders

from pawand.daemon import Parts
from pawand.web.access import ForbiddenError, Gate, Grant, Request, TooManyFailuresError, UnauthorizedError
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.web.conftest import Fetch

TOKEN = "t" * 43
README_HEALTH = {"status", "version", "uptime_secs", "agent_id"}


@pytest.fixture
def token(state: Path) -> str:
    state.mkdir(parents=True, exist_ok=True)
    (state / "token").write_text(f"  {TOKEN}\n")
    (state / "token").chmod(0o600)
    return TOKEN


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.gen_test
async def test_loopback_without_origin_may_do_everything(fetch: Fetch) -> None:
    answer = await fetch("/health")
    assert set(json.loads(answer.body)) > README_HEALTH
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "origin", ["http://localhost:5173", "http://127.0.0.1", "https://[::1]:8443", "http://127.9.9.9:1"]
)
async def test_pages_of_loopback_may_do_everything(fetch: Fetch, origin: str) -> None:
    answer = await fetch("/sessions", body=b"{}", headers={"Origin": origin})
    assert answer.code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert "Origin" in answer.headers["Vary"]


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://localhost.evil.example",
        "http://evil.example:3300",
        "http://127.0.0.1.evil.example",
        "http://localhost@evil.example",
        "file://",
        "chrome-extension://abc",
        "http://127.0.0.1%evil",
        "http://[::1%25x]",
        "http://",
        "",
    ],
)
async def test_any_other_page_is_refused_and_no_tool_runs(
    fetch: Fetch, upstream: OpenAIServer, workspace: Path, state: Path, origin: str
) -> None:
    upstream.script = lambda _: fake.calls(("bash", {"command": "touch pwned"}))
    headers = {"Origin": origin}
    for path in ("/chat", "/chat/stream", "/api/chat"):
        answer = await fetch(path, body=b'{"message": "x"}', headers=headers)
        assert (answer.code, json.loads(answer.body)["code"]) == (403, "origin_not_allowed")
        assert "Access-Control-Allow-Origin" not in answer.headers
    answer = await fetch("/chat", body=b'{"message": "x"}', headers=headers | {"Content-Type": "text/plain"})
    assert answer.code == 403
    for path in ("/models", "/sessions", "/nothing"):
        assert (await fetch(path, headers=headers)).code == 403
    assert upstream.requests == []
    assert list(workspace.iterdir()) == []
    assert list((state / "sessions").glob("*.json")) == []


@pytest.mark.gen_test
async def test_any_page_may_ask_who_is_there(fetch: Fetch) -> None:
    answer = await fetch("/health", headers={"Origin": "https://evil.example"})
    assert answer.code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert set(json.loads(answer.body)) == README_HEALTH
    assert (await fetch("/agents", headers={"Origin": "null"})).headers["Access-Control-Allow-Origin"] == "*"
    assert (await fetch("/health", method="POST", body=b"", headers={"Origin": "https://evil.example"})).code == 403


@pytest.mark.gen_test
async def test_a_page_of_the_servers_own_address_is_let_in(fetch: Fetch, http_port: int) -> None:
    origin = f"http://10.1.2.3:{http_port}"
    headers = {"Host": f"10.1.2.3:{http_port}", "Origin": origin}
    assert (await fetch("/models", headers=headers)).headers["Access-Control-Allow-Origin"] == origin
    assert (await fetch("/models", headers=headers | {"Origin": "http://10.1.2.3:9"})).code == 403
    assert (await fetch("/models", headers=headers | {"Origin": origin.replace("http", "https")})).code == 403


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:3300", "0.0.0.0:3300", "[::]:3300", "[::ffff:0.0.0.0]",
     "localhost.evil.example", "127.1", "2130706433",
     "localhost:x", "other-host"],
)  # fmt: skip
async def test_other_hosts_are_misdirected(fetch: Fetch, host: str) -> None:
    for path in ("/health", "/chat", "/nothing"):
        answer = await fetch(path, headers={"Host": host})
        assert (answer.code, json.loads(answer.body)["code"]) == (421, "host_not_allowed")


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:99", "127.0.0.1", "[::1]:3300", "192.168.1.7:3300", "localhost."]
)
async def test_addresses_and_localhost_are_fine(fetch: Fetch, host: str) -> None:
    assert (await fetch("/health", headers={"Host": host})).code == 200


@pytest.mark.gen_test
@pytest.mark.settings(server__allowed_hosts=["pawan.example"], server__cors_origins=["https://app.example"])
async def test_configured_hosts_and_origins(fetch: Fetch) -> None:
    assert (await fetch("/health", headers={"Host": "PAWAN.example:443"})).code == 200
    answer = await fetch("/models", headers={"Origin": "https://app.example"})
    assert (answer.code, answer.headers["Access-Control-Allow-Origin"]) == (200, "https://app.example")
    assert (await fetch("/models", headers={"Origin": "http://app.example"})).code == 403
    assert (await fetch("/models", headers={"Origin": "https://app.example:444"})).code == 403


@pytest.mark.gen_test
async def test_a_preflight_of_an_allowed_page(fetch: Fetch) -> None:
    headers = {
        "Origin": "http://localhost:5173",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type, x-custom",
    }
    answer = await fetch("/chat", method="OPTIONS", headers=headers)
    assert (answer.code, answer.body) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == "http://localhost:5173"
    assert answer.headers["Access-Control-Allow-Methods"] == "GET, POST, DELETE"
    assert answer.headers["Access-Control-Allow-Headers"] == "content-type, x-custom"
    assert "Origin" in answer.headers["Vary"]
    refused = await fetch("/chat", method="OPTIONS", headers=headers | {"Origin": "https://evil.example"})
    assert refused.code == 403
    assert "Access-Control-Allow-Methods" not in refused.headers


@pytest.mark.gen_test
@pytest.mark.settings(server__cors_origins=["http://app.example"])
async def test_options_that_are_no_preflight_need_what_others_need(token: str, fetch: Fetch) -> None:
    asks = {"Access-Control-Request-Method": "POST"}
    page = {"Origin": "http://app.example"}
    proxied = {"Via": "1.1 proxy"}
    for headers in ({}, asks, page):
        for path in ("/chat", "/health", "/nothing"):
            refused = await fetch(path, method="OPTIONS", headers=proxied | headers)
            assert (refused.code, json.loads(refused.body)["code"]) == (401, "unauthorized")
            assert "Allow" not in refused.headers
        assert (await fetch("/chat", method="OPTIONS", headers=proxied | headers | bearer(token))).code == 204
        assert (await fetch("/nothing", method="OPTIONS", headers=proxied | headers | bearer(token))).code == 404
        assert (await fetch("/chat", method="OPTIONS", headers=headers)).code == 204
    assert (await fetch("/chat", method="OPTIONS", headers=proxied | page | asks)).code == 204
    assert (await fetch("/nothing", method="OPTIONS", headers=proxied | page | asks)).code == 404


@pytest.mark.gen_test
async def test_errors_can_be_read_by_an_allowed_page(fetch: Fetch) -> None:
    origin = {"Origin": "http://localhost:5173"}
    for answer in (
        await fetch("/sessions/none", headers=origin),
        await fetch("/chat", body=b"{", headers=origin),
        await fetch("/nothing", headers=origin),
        await fetch("/chat", headers=origin),
    ):
        assert answer.code >= 400
        assert answer.headers["Access-Control-Allow-Origin"] == origin["Origin"]


FORWARDED = [
    "Forwarded",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Anything",
    "X-Real-IP",
    "Via",
    "x-FORWARDED-proto",
    "X_Forwarded_For",
]


@pytest.mark.gen_test
@pytest.mark.parametrize("name", FORWARDED)
async def test_through_a_proxy_only_discovery_without_a_token(fetch: Fetch, name: str) -> None:
    headers = {name: "127.0.0.1"}
    assert set(json.loads((await fetch("/health", headers=headers)).body)) == README_HEALTH
    answer = await fetch("/sessions", headers=headers)
    assert (answer.code, json.loads(answer.body)["code"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert (await fetch("/chat", body=b'{"message": "x"}', headers=headers)).code == 401


@pytest.mark.gen_test
async def test_the_token_opens_everything_through_a_proxy(token: str, fetch: Fetch) -> None:
    headers = {"X-Forwarded-For": "8.8.8.8"} | bearer(token)
    assert (await fetch("/sessions", headers=headers)).code == 200
    assert set(json.loads((await fetch("/health", headers=headers)).body)) > README_HEALTH
    assert (await fetch("/sessions", headers=headers | {"Origin": "https://evil.example"})).code == 403


@pytest.mark.gen_test
async def test_a_wrong_token_is_refused_from_anywhere_and_ten_of_them_lock_the_address(
    token: str, fetch: Fetch
) -> None:
    assert (await fetch("/sessions", headers=bearer(token))).code == 200
    for _ in range(10):
        assert (await fetch("/health", headers=bearer("wrong" * 8))).code == 401
    for headers in (bearer("wrong" * 8), {"Via": "1.1 proxy"} | bearer(token)):
        answer = await fetch("/sessions", headers=headers)
        assert (answer.code, json.loads(answer.body)["code"]) == (429, "too_many_failures")
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert (await fetch("/sessions")).code == 200


@pytest.mark.gen_test
async def test_who_needs_no_token_and_sends_the_right_one_is_not_locked_out_by_others(token: str, fetch: Fetch) -> None:
    for number in range(12):
        assert (await fetch("/sessions", headers=bearer("wrong" * 8))).code == (401 if number < 10 else 429)
    for more in ({}, {"Origin": "http://localhost:5173"}):
        assert (await fetch("/sessions", headers=more | bearer(token))).code == 200
        assert set(json.loads((await fetch("/health", headers=more | bearer(token))).body)) > README_HEALTH
    evil = {"Origin": "https://evil.example"}
    assert (await fetch("/health", headers=evil | bearer(token))).code == 429


@pytest.mark.gen_test
@pytest.mark.settings(server__local_auth="token")
async def test_where_all_need_the_token_ten_wrong_ones_lock_all_of_this_machine(token: str, fetch: Fetch) -> None:
    for _ in range(10):
        assert (await fetch("/sessions", headers=bearer("wrong" * 8))).code == 401
    assert (await fetch("/sessions", headers=bearer(token))).code == 429


@pytest.mark.gen_test
@pytest.mark.settings(server__cors_origins=["*"])
async def test_any_origin_needs_the_token(token: str, fetch: Fetch) -> None:
    origin = {"Origin": "https://anywhere.example"}
    refused = await fetch("/sessions", headers=origin)
    assert refused.code == 401
    assert refused.headers["Access-Control-Allow-Origin"] == origin["Origin"]
    answer = await fetch("/sessions", headers=origin | bearer(token))
    assert (answer.code, answer.headers["Access-Control-Allow-Origin"]) == (200, origin["Origin"])
    preflight = origin | {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    assert (await fetch("/sessions", method="OPTIONS", headers=preflight)).code == 204
    assert (await fetch("/sessions", headers={"Origin": "http://localhost:1"})).code == 200


@pytest.mark.gen_test
@pytest.mark.settings(server__local_auth="token")
async def test_local_auth_asks_loopback_for_the_token(fetch: Fetch, state: Path) -> None:
    assert (await fetch("/sessions")).code == 401
    assert set(json.loads((await fetch("/health")).body)) == README_HEALTH
    made = (state / "token").read_text().strip()
    assert (state / "token").stat().st_mode & 0o777 == 0o600
    assert len(made) >= 32
    assert (await fetch("/sessions", headers=bearer(made))).code == 200


@pytest.mark.gen_test
async def test_checks_come_in_order(token: str, fetch: Fetch) -> None:
    bad = {"Host": "evil.example", "Origin": "https://evil.example"} | bearer("wrong" * 8)
    big = b"x" * (2 * 1024 * 1024)
    text = {"Content-Type": "text/plain"}
    odd = {"method": "BREW", "allow_nonstandard_methods": True}
    assert (await fetch("/nothing", body=big, headers=bad | text)).code == 421
    assert (await fetch("/sessions/%ff", headers=bad)).code == 421
    assert (await fetch("/health", headers=bad, **odd)).code == 421
    del bad["Host"]
    assert (await fetch("/nothing", body=big, headers=bad | text)).code == 403
    assert (await fetch("/sessions/%ff", headers=bad)).code == 403
    assert (await fetch("/health", headers=bad, **odd)).code == 403
    del bad["Origin"]
    assert (await fetch("/nothing", body=big, headers=bad | text)).code == 401
    assert (await fetch("/sessions/%ff", headers=bad)).code == 401
    assert (await fetch("/health", headers=bad, **odd)).code == 401
    assert (await fetch("/nothing", body=big, headers=text)).code == 404
    assert (await fetch("/health", body=big, headers=text)).code == 405
    assert (await fetch("/chat", body=big, headers=text)).code == 413
    assert (await fetch("/chat", body=b"{", headers=text)).code == 415
    assert (await fetch("/chat", body=b"{")).code == 400


def knock(gate: Gate, peer: str, *, public: bool, **headers: str) -> Grant:
    """What the gate says to a caller at `peer`; the socket's address is all that tells where a caller is."""
    sent = HTTPHeaders({"Host": "192.168.1.7:3300", **headers})
    return gate.admit(Request(headers=sent, scheme="http", peer=peer, public=public, preflight=False))


@pytest.mark.parametrize("peer", ["192.168.1.9", "8.8.8.8", "::ffff:192.168.1.9", "fe80::1%eth0", "2001:db8::1"])
def test_another_address_gets_discovery_only(token: str, parts: Parts, peer: str) -> None:
    gate = parts.services.gate
    assert knock(gate, peer, public=True) == Grant(full=False)
    for headers in ({}, {"Origin": "http://localhost:1"}, bearer("wrong" * 8)):
        with pytest.raises(UnauthorizedError):
            knock(gate, peer, public=False, **headers)
    assert knock(gate, peer, public=False, **bearer(token)) == Grant(full=True)
    with pytest.raises(ForbiddenError):
        knock(gate, peer, public=False, Origin="https://evil.example", **bearer(token))


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"])
def test_every_way_to_write_loopback_is_local(parts: Parts, peer: str) -> None:
    assert knock(parts.services.gate, peer, public=False) == Grant(full=True)


def test_a_whole_ipv6_network_shares_its_failures(token: str, parts: Parts) -> None:
    for number in range(10):
        with pytest.raises(UnauthorizedError):
            knock(parts.services.gate, f"2001:db8::{number}", public=False, **bearer("wrong" * 8))
    with pytest.raises(TooManyFailuresError):
        knock(parts.services.gate, "2001:db8::ffff", public=False, **bearer(token))
    assert knock(parts.services.gate, "2001:db8:0:1::1", public=False, **bearer(token)) == Grant(full=True)


def test_a_token_that_is_too_short_stops_the_start(state: Path, workspace: Path, io_loop: Any) -> None:
    from pawand.errors import ConfigError
    from tests import harness

    state.mkdir()
    (state / "token").write_text("short")
    with pytest.raises(ConfigError, match="at least 16"):
        harness.parts(workspace, state, "http://127.0.0.1:9/v1")


def test_any_origin_without_a_token_stops_the_start(state: Path, workspace: Path, io_loop: Any) -> None:
    from pawand.errors import ConfigError
    from tests import harness

    with pytest.raises(ConfigError, match="needs a token"):
        harness.parts(workspace, state, "http://127.0.0.1:9/v1", server__cors_origins=["*"])


def test_parts_know_no_token_by_default(parts: Parts, state: Path) -> None:
    assert not (state / "token").exists()
