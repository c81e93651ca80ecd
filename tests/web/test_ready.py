"""`/ready`: whether a message that comes now is answered."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.web.conftest import Fetch

PROXIED = {"X-Forwarded-For": "10.0.0.1"}


@pytest.mark.gen_test
async def test_a_daemon_that_can_work_is_ready(fetch: Fetch) -> None:
    for path in ("/ready", "/api/ready"):
        answer = await fetch(path)
        assert (answer.code, json.loads(answer.body)) == (200, {"ready": True, "reasons": []})
    head = await fetch("/ready", method="HEAD")
    assert (head.code, head.body) == (200, b"")


@pytest.mark.gen_test
async def test_it_is_for_callers_with_full_access(fetch: Fetch) -> None:
    assert (await fetch("/ready", headers=PROXIED)).code == 401
    assert (await fetch("/health", headers=PROXIED)).code == 200


@pytest.mark.gen_test
@pytest.mark.settings(provider="nvidia")
async def test_without_a_key_it_is_not(fetch: Fetch) -> None:
    answer = await fetch("/ready")
    found = json.loads(answer.body)
    assert (answer.code, found["ready"]) == (503, False)
    assert [reason.partition(":")[0] for reason in found["reasons"]] == ["no API key for provider nvidia"]
    assert (await fetch("/health")).code == 200
    head = await fetch("/ready", method="HEAD")
    assert (head.code, head.body) == (503, b"")


@pytest.mark.gen_test
async def test_without_its_sessions_it_is_not(fetch: Fetch, state: Path) -> None:
    shutil.rmtree(state / "sessions")
    answer = await fetch("/ready")  # nobody has looked before: one that was well counts as well for a second
    assert answer.code == 503
    assert json.loads(answer.body)["reasons"] == json.loads((await fetch("/health")).body)["reasons"]
    assert "cannot be reached" in json.loads(answer.body)["reasons"][0]
    (state / "sessions").mkdir()
    assert (await fetch("/ready")).code == 200


def test_while_it_stops_open_connections_hear_that_it_is_not(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    upstream.script = [fake.text(*"abcdefghij", pause=0.3)]
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        address = urlsplit(pawand.url)
        pooled = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
        assert ask(pooled) == (200, {"ready": True, "reasons": []})
        turn = harness.Stream(pawand.url, "/chat/stream", {"message": "one", "session_id": "s"})
        turn.read_until("token")
        pawand.process.send_signal(signal.SIGTERM)
        stopping = (503, {"ready": False, "reasons": ["pawand is shutting down"]})
        harness.until(lambda: ask(pooled) == stopping, "it is not ready any more")
        assert turn.read_rest()[-1][1]["content"] == "abcdefghij"
        pooled.close()
        assert pawand.process.wait(10) == 0


def ask(connection: http.client.HTTPConnection) -> tuple[int, Any]:
    connection.request("GET", "/ready")
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())
