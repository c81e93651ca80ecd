"""Statuses and error bodies: every wrong request gets the right one, one line of JSON, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tornado.httpserver import HTTPServer

from tests.fakes import openai_server as fake
from tests.web.conftest import Fetch

MIB = 1024 * 1024
HEAD = b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
DEEP = b'{"message": ' + b"[" * 200_000

BAD_BODIES: list[tuple[str, bytes, int, str]] = [
    ("malformed", b'{"message": ', 400, "bad_request"),
    ("no object", b"[]", 400, "bad_request"),
    ("no message", b"{}", 400, "bad_request"),
    ("empty", b"", 400, "bad_request"),
    ("blank message", b'{"message": " \\n\\t"}', 400, "bad_request"),
    ("message of wrong type", b'{"message": 7}', 400, "bad_request"),
    ("null message", b'{"message": null}', 400, "bad_request"),
    ("session of wrong type", b'{"message": "x", "session_id": 7}', 400, "bad_request"),
    ("empty session", b'{"message": "x", "session_id": ""}', 400, "bad_request"),
    ("session that is a path", b'{"message": "x", "session_id": "../x"}', 400, "bad_request"),
    ("model of wrong type", b'{"message": "x", "model": []}', 400, "bad_request"),
    ("blank model", b'{"message": "x", "model": " "}', 400, "bad_request"),
    ("NaN in an unknown field", b'{"message": "x", "more": NaN}', 400, "bad_request"),
    ("lone surrogate", b'{"message": "\\ud800"}', 400, "bad_request"),
    ("lone surrogate in an unknown field", b'{"message": "x", "more": ["\\udfff"]}', 400, "bad_request"),
    ("not UTF-8", b'{"message": "\xff"}', 400, "bad_request"),
    ("deep", DEEP, 400, "bad_request"),
    ("deep in an unknown field", b'{"message": "x", "more": ' + b'{"a":' * 100_000, 400, "bad_request"),
    ("trailing text", b'{"message": "x"} x', 400, "bad_request"),
    ("2 MB", b'{"message": "' + b"x" * (2 * MIB) + b'"}', 413, "too_large"),
]


def problem(answer: Any) -> tuple[int, str]:
    """(status, code), after a look at the shape."""
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    found = json.loads(answer.body)
    assert sorted(found) == ["code", "error"]
    assert found["error"]
    assert "\n" not in found["error"]
    assert "Traceback" not in found["error"]
    return answer.code, found["code"]


@pytest.mark.gen_test
@pytest.mark.parametrize("route", ["/chat", "/chat/stream"])
@pytest.mark.parametrize(
    ("body", "status", "code"), [row[1:] for row in BAD_BODIES], ids=[row[0] for row in BAD_BODIES]
)
async def test_bad_bodies(fetch: Fetch, state: Path, route: str, body: bytes, status: int, code: str) -> None:
    assert problem(await fetch(route, body=body)) == (status, code)
    assert list((state / "sessions").glob("*.json")) == []


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("POST", "/nothing", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("GET", "/api", 404, "not_found"),
        ("OPTIONS", "/nothing", 404, "not_found"),
        ("GET", "/chat", 405, "method_not_allowed"),
        ("PUT", "/chat", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("DELETE", "/sessions", 405, "method_not_allowed"),
        ("POST", "/sessions/x", 405, "method_not_allowed"),
        ("GET", "/sessions/none", 404, "not_found"),
        ("DELETE", "/sessions/none", 404, "not_found"),
        ("GET", "/sessions/none/events", 404, "not_found"),
        ("GET", "/sessions/", 400, "bad_request"),
        ("GET", "/sessions/..%2fx", 400, "bad_request"),
        ("GET", "/sessions/%2e%2e", 400, "bad_request"),
        ("DELETE", "/sessions/..%2f..%2fetc%2fpasswd", 400, "bad_request"),
        ("GET", "/sessions/a%00b", 400, "bad_request"),
        ("GET", "/sessions/%ff", 400, "bad_request"),
        ("GET", "/sessions/%ff/events", 400, "bad_request"),
        ("PUT", "/sessions/%ff/events", 405, "method_not_allowed"),
        ("BREW", "/health", 405, "method_not_allowed"),
        ("BREW", "/nothing", 404, "not_found"),
        ("FINISH", "/chat", 405, "method_not_allowed"),
        ("GET", "/sessions/none/cancel", 405, "method_not_allowed"),
        ("POST", "/sessions/none/cancel", 404, "not_found"),
        ("POST", "/sessions/none/cancel?all=yes", 400, "bad_request"),
        ("DELETE", "/sessions/none/permissions", 405, "method_not_allowed"),
        ("GET", "/sessions/none/permissions/x", 405, "method_not_allowed"),
        ("GET", "/sessions/" + "a" * 129, 400, "bad_request"),
        ("GET", "/sessions/..%2fx/events", 400, "bad_request"),
        ("GET", "/sessions?limit=x", 400, "bad_request"),
        ("GET", "/sessions?offset=-1", 400, "bad_request"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_bad_requests(fetch: Fetch, prefix: str, method: str, path: str, status: int, code: str) -> None:
    body = b"{}" if method in ("POST", "PUT") else None
    options = {"body": body, "headers": {"Content-Type": "application/json"}} if body else {}
    answer = await fetch(prefix + path, method=method, allow_nonstandard_methods=True, **options)
    assert problem(answer) == (status, code)
    if status == 405:
        assert "OPTIONS" in answer.headers["Allow"]


@pytest.mark.gen_test
async def test_get_on_the_stream_says_how_to_do_it(fetch: Fetch) -> None:
    answer = await fetch("/chat/stream")
    assert problem(answer) == (405, "method_not_allowed")
    error = json.loads(answer.body)["error"]
    assert "EventSource cannot POST" in error
    assert "fetch" in error
    assert "/sessions/{id}/events" in error


@pytest.mark.gen_test
@pytest.mark.parametrize("content_type", ["text/plain", "", "application/x-www-form-urlencoded", "application/jsonp"])
async def test_a_body_that_is_not_declared_json_is_415(fetch: Fetch, content_type: str) -> None:
    answer = await fetch("/chat", body=b'{"message": "x"}', headers={"Content-Type": content_type})
    assert problem(answer) == (415, "unsupported_media_type")


@pytest.mark.gen_test
async def test_parameters_of_the_content_type_are_fine(fetch: Fetch) -> None:
    answer = await fetch("/sessions", body=b"{}", headers={"Content-Type": "Application/JSON; charset=utf-8"})
    assert answer.code == 200


@pytest.mark.gen_test
async def test_post_sessions_needs_no_body_and_no_content_type(fetch: Fetch) -> None:
    answer = await fetch("/sessions", method="POST", body=b"", headers={"Content-Type": "text/plain"})
    assert answer.code == 200
    session = json.loads(answer.body)["session_id"]
    assert json.loads((await fetch(f"/sessions/{session}")).body)["messages"] == []


@pytest.mark.gen_test
@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
async def test_chunked_bodies_over_the_limit_are_refused(
    http_server: HTTPServer, http_port: int, expect: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    writer.write(HEAD + expect + b"Transfer-Encoding: chunked\r\n\r\n")
    if expect:
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 (Continue)\r\n\r\n"
    for _ in range(40):
        writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()


@pytest.mark.gen_test
async def test_an_endless_body_is_answered_in_its_middle(http_server: HTTPServer, http_port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(16):
        writer.write(b"100000\r\n" + b"x" * 0x100000 + b"\r\n")
        await writer.drain()
    writer.write(b"100000\r\nx")  # one byte too many; what came after it could meet a connection that is closed
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close" in head
    writer.close()


@pytest.mark.gen_test
async def test_a_huge_body_is_refused_before_it_is_sent(http_server: HTTPServer, http_port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    writer.write(HEAD + b"Content-Length: 9000000000\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    writer.write(HEAD + b"Expect: 100-continue\r\nContent-Length: 2000000\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()


@pytest.mark.gen_test
async def test_unknown_fields_are_ignored(fetch: Fetch) -> None:
    answer = await fetch("/sessions", body=b'{"session_id": "u", "colour": "red"}')
    assert answer.code == 200


@pytest.mark.gen_test
async def test_head_is_get_without_a_body(fetch: Fetch) -> None:
    await fetch("/sessions", body=b'{"session_id": "h"}')
    for path in ("/health", "/agents", "/models", "/sessions", "/sessions/h", "/sessions/h/events"):
        answer = await fetch(path, method="HEAD")
        assert (answer.code, answer.body) == (200, b""), path


@pytest.mark.gen_test
async def test_an_error_of_our_own_is_a_plain_500_and_one_log_entry(
    fetch: Fetch, log_watch: Any, monkeypatch: pytest.MonkeyPatch, parts: Any
) -> None:
    async def fail() -> None:
        raise RuntimeError("a bug with a secret sk-0123456789")

    monkeypatch.setattr(parts.services.directory, "peers", fail)
    log_watch.expect("GET /agents failed")
    answer = await fetch("/agents")
    assert problem(answer) == (500, "internal")
    assert b"sk-" not in answer.body


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200) | st.text(max_size=100).map(lambda t: json.dumps({"message": t, "session_id": t}).encode())
)
def test_random_bodies_never_break_the_server(io_loop: Any, fetch: Fetch, upstream: Any, body: bytes) -> None:
    upstream.script = lambda _: fake.text("ok")
    answer = io_loop.run_sync(lambda: fetch("/chat", body=body), timeout=20)
    assert answer.code in (200, 400), (body, answer.body)
    if answer.code == 400:
        assert problem(answer) == (400, "bad_request")


def test_a_client_that_talks_nonsense_gets_400(http_server: HTTPServer, http_port: int, io_loop: Any) -> None:
    async def talk(data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
        writer.write(data)
        answer = await reader.read()
        writer.close()
        return answer

    for data in (b"\x16\x03\x01\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nHost\r\n\r\n"):
        answer = io_loop.run_sync(lambda data=data: talk(data), timeout=10)
        assert answer.startswith(b"HTTP/1.1 400"), data
