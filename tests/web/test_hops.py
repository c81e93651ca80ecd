"""`Pawan-Hops` and when `ask_agent` is offered, permitted and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tornado.httputil import HTTPHeaders

from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.web.conftest import Fetch

ASK = fake.calls(("ask_agent", {"name": "bee", "message": "x"}))
PEER = {"peers__bee__address": "127.0.0.1:1", "peers__bee__token": "0123456789abcdef"}


def offered(upstream: OpenAIServer) -> dict[str, str]:
    """The tools of the last request and what is said of them."""
    functions = [tool["function"] for tool in upstream.requests[-1]["tools"]]
    return {function["name"]: function["description"] for function in functions}


async def chat(fetch: Fetch, **headers: str) -> Any:
    return json.loads((await fetch("/chat", body=b'{"message": "go"}', headers=headers)).body)


def result(upstream: OpenAIServer) -> Any:
    return json.loads(upstream.requests[-1]["messages"][-1]["content"])


@pytest.mark.gen_test
async def test_nobody_to_ask_no_tool_to_ask_with(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [fake.text("ok")]
    await chat(fetch)
    assert "ask_agent" not in offered(upstream)


@pytest.mark.gen_test
@pytest.mark.settings(**PEER, peers__ant__address="ant")
async def test_configured_peers_are_named(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [fake.text("ok")]
    await chat(fetch)
    assert "Among them: ant, bee." in offered(upstream)["ask_agent"]


@pytest.mark.gen_test
@pytest.mark.settings(**PEER, limits__hops=0)
async def test_no_hops_no_tool(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [ASK, fake.text("ok")]
    await chat(fetch)
    assert "ask_agent" not in offered(upstream)
    assert "there is no tool ask_agent" in result(upstream)["error"]


@pytest.fixture
def aegis(tmp_path: Path, _own_home: Path) -> None:
    file = _own_home / ".config/aegis/aegis-net.toml"
    file.parent.mkdir(parents=True)
    file.write_text('[peers.zed]\nip = "10.0.0.2"\n')


@pytest.mark.gen_test
async def test_an_aegis_file_is_company(aegis: None, fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [ASK, fake.text("ok")]
    await chat(fetch)
    assert "ask_agent" in offered(upstream)
    assert result(upstream)["error"] == "there is no agent 'bee'; there are: zed"


@pytest.mark.gen_test
@pytest.mark.settings(**PEER)
@pytest.mark.parametrize(("hops", "refused"), [(None, False), ("0", False), ("1", True), ("7", True), ("0001", True)])
async def test_the_header_says_how_far_a_message_has_come(
    fetch: Fetch, upstream: OpenAIServer, hops: str | None, refused: bool
) -> None:
    upstream.script = [ASK, fake.text("ok")]
    await chat(fetch, **({} if hops is None else {"Pawan-Hops": hops}))
    error = result(upstream)["error"]
    assert ("so no further agent is asked" in error) == refused
    assert ("cannot be reached" in error) == (not refused)


@pytest.mark.gen_test
@pytest.mark.settings(**PEER)
async def test_a_child_and_a_batch_are_held_to_the_same_limit(fetch: Fetch, upstream: OpenAIServer) -> None:
    def script(request: fake.Body) -> fake.Reply:
        last = request["messages"][-1]
        if last["role"] == "tool":
            return fake.text(last["content"])
        if last["content"] == "go":
            inner = {"tool": "ask_agent", "input": {"name": "bee", "message": "x"}}
            return fake.calls(("spawn_agent", {"prompt": "child"}), ("batch", {"calls": [inner]}))
        return ASK

    upstream.script = script
    await chat(fetch, **{"Pawan-Hops": "1"})
    told = [json.loads(m["content"]) for m in upstream.requests[-1]["messages"] if m["role"] == "tool"]
    assert len(told) == 2
    assert all("so no further agent is asked" in json.dumps(one) for one in told)


@pytest.mark.gen_test
@pytest.mark.parametrize("value", ["", "x", "-1", "1.5", "1 2", "1,2", "99999", "\u0661", "0x1"])
async def test_a_header_that_makes_no_sense_is_refused(
    fetch: Fetch, upstream: OpenAIServer, state: Path, value: str
) -> None:
    headers = HTTPHeaders({"Content-Type": "application/json"})
    headers.add("Pawan-Hops", value.encode().decode("latin-1"))
    await fetch("/sessions", body=b'{"session_id": "s"}')
    for path in ("/chat", "/chat/stream", "/sessions/s/messages"):
        answer = await fetch(path, body=b'{"message": "x"}', headers=headers)
        assert (answer.code, json.loads(answer.body)["code"]) == (400, "bad_request")
    headers = HTTPHeaders({"Content-Type": "application/json"})
    headers.add("Pawan-Hops", "0")
    headers.add("Pawan-Hops", "0")
    assert (await fetch("/chat", body=b'{"message": "x"}', headers=headers)).code == 400
    assert upstream.requests == []


@pytest.mark.gen_test
@pytest.mark.settings(**PEER)
async def test_a_message_that_is_submitted_carries_its_hops(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [ASK, fake.text("ok"), fake.text("second")]
    await fetch("/sessions", body=b'{"session_id": "s"}')
    await fetch("/sessions/s/messages", body=b'{"message": "go"}', headers={"Pawan-Hops": "1"})
    await fetch("/chat", body=b'{"message": "go", "session_id": "s"}')  # waits for the one before
    results = [m for m in upstream.requests[1]["messages"] if m["role"] == "tool"]
    assert "so no further agent is asked" in results[0]["content"]


@pytest.mark.gen_test
async def test_the_way_is_no_part_of_what_is_the_same_request(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [fake.text("once")]
    key = {"Idempotency-Key": "k"}
    first = await chat(fetch, **key)
    again = await chat(fetch, **key, **{"Pawan-Hops": "1"})
    assert again == first
    assert first["content"] == "once"


@pytest.mark.gen_test
@pytest.mark.settings(**PEER, permissions__ask_agent="deny")
async def test_permissions_hold_for_it(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [ASK, fake.text("ok")]
    await chat(fetch)
    assert "ask_agent is denied by [permissions]" in result(upstream)["error"]
