"""`/models?live=1`: what the provider says it has, beside what is configured."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest

from pawand import daemon
from pawand.daemon import Parts
from pawand.providers import listing as module
from tests import harness
from tests.fakes.openai_server import OpenAIServer, listing
from tests.web.conftest import Fetch

CONFIGURED = [
    {"name": harness.MODEL, "provider": "OpenAI", "is_default": True},
    {"name": "second", "provider": "OpenAI", "is_default": False},
]
FALLBACK = pytest.mark.settings(fallback_models=["second"])


def page(*names: Any) -> bytes:
    return json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in names]}).encode()


async def ask(fetch: Fetch) -> dict[str, Any]:
    answer = await fetch("/models?live=1")
    assert answer.code == 200
    found: dict[str, Any] = json.loads(answer.body)
    return found


@pytest.mark.gen_test
@FALLBACK
async def test_the_providers_models_follow_the_configured_ones(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.models = listing(page("third", "second", harness.MODEL, "third", "fourth"))
    more = [{"name": name, "provider": "OpenAI", "is_default": False} for name in ("third", "fourth")]
    assert await ask(fetch) == {"models": CONFIGURED + more, "live": True}
    assert (upstream.listings, upstream.requests) == (1, [])


@pytest.mark.gen_test
@FALLBACK
async def test_without_the_word_no_provider_is_asked(fetch: Fetch, upstream: OpenAIServer) -> None:
    assert json.loads((await fetch("/models")).body) == {"models": CONFIGURED}
    for wrong in ("0", "", "true", "2"):
        answer = await fetch(f"/models?live={wrong}")
        assert (answer.code, json.loads(answer.body)["code"]) == (400, "bad_request")
    assert upstream.listings == 0


@pytest.mark.gen_test
async def test_many_who_ask_share_one_request_and_its_answer_is_kept_a_minute(
    fetch: Fetch, upstream: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.models = listing(0.3, page("one"))
    answers = await asyncio.gather(*(ask(fetch) for _ in range(5)))
    assert [[model["name"] for model in answer["models"]] for answer in answers] == [[harness.MODEL, "one"]] * 5
    upstream.models = listing(page("two"))
    assert await ask(fetch) == answers[0]
    assert upstream.listings == 1
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 61))
    assert [model["name"] for model in (await ask(fetch))["models"]] == [harness.MODEL, "two"]
    assert upstream.listings == 2


WRONG: list[tuple[str, Any, str]] = [
    ("refused", listing(b'{"error": {"message": "not for you"}}', status=403), "answered 403"),
    ("absent", listing(b"<html>", status=404), "answered 404"),
    ("no JSON", listing(b"<html>"), "no list of models"),
    ("another shape", listing(b'{"models": []}'), "no list of models"),
    ("a name that is none", listing(page(7)), "no list of models"),
    ("deep", listing(b'{"x": ' + b"[" * 100_000), "no list of models"),
    ("not UTF-8", listing(b'{"data": [{"id": "\xff"}]}'), "no list of models"),
    ("endless", listing(*([b" " * 65536] * 80)), "longer than can be read"),
]


@pytest.mark.gen_test
@FALLBACK
@pytest.mark.parametrize(("reply", "reason"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
async def test_what_the_provider_cannot_say_is_told(
    fetch: Fetch, upstream: OpenAIServer, monkeypatch: pytest.MonkeyPatch, reply: Any, reason: str
) -> None:
    upstream.models = reply
    found = await ask(fetch)
    assert (found["models"], found["live"]) == (CONFIGURED, False)
    assert reason in found["reason"]
    upstream.models = listing(page("late"))
    assert await ask(fetch) == found
    asked = upstream.listings
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 6))
    assert (await ask(fetch))["models"][-1]["name"] == "late"
    assert upstream.listings == asked + 1


@pytest.mark.gen_test
async def test_a_provider_that_does_not_answer_is_waited_for_for_five_seconds_at_most(
    fetch: Fetch, upstream: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pawand.providers.openai_chat.LISTING_SECS", 0.2)
    upstream.models = listing(30.0, page("never"))
    found = await ask(fetch)
    assert found["live"] is False
    assert "did not say within 0.2 s" in found["reason"]


@pytest.mark.gen_test
async def test_names_that_no_request_could_send_are_left_out(fetch: Fetch, upstream: OpenAIServer) -> None:
    odd = ["", " ", "a\nb", "\x1b[31mred", "x" * 257, "right\u202eleft", "fine", "x" * 256]
    upstream.models = listing(page(*odd))
    assert [model["name"] for model in (await ask(fetch))["models"]] == [harness.MODEL, "fine", "x" * 256]


@pytest.mark.gen_test
@pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site"])
async def test_pages_of_other_sites_have_nobody_asked(fetch: Fetch, upstream: OpenAIServer, site: str) -> None:
    page = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    refused = await fetch("/models?live=1", headers=page)
    assert (refused.code, json.loads(refused.body)["code"]) == (403, "origin_not_allowed")
    assert json.loads((await fetch("/models", headers=page)).body)["models"]
    assert upstream.listings == 0
    for own in ({"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Site": "same-origin"}, page | {"Origin": "http://localhost:1"}):
        assert json.loads((await fetch("/models?live=1", headers=own)).body)["live"] is True
    assert upstream.listings == 1


@pytest.mark.gen_test
async def test_a_key_among_the_names_is_not_passed_on(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.models = listing(page(f"model-{harness.API_KEY}"))
    assert harness.API_KEY not in json.dumps(await ask(fetch))
    upstream.models = listing(json.dumps({"error": {"message": harness.API_KEY}}).encode(), status=400)
    assert harness.API_KEY not in json.dumps(await ask(fetch))


@pytest.mark.gen_test
async def test_a_bare_list_will_do_and_a_long_one_is_cut(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.models = listing(json.dumps([{"id": f"m{number}"} for number in range(3000)]).encode())
    found = (await ask(fetch))["models"]
    assert (len(found), found[-1]["name"]) == (1 + module.MAX_MODELS, "m1999")


@pytest.mark.gen_test
@pytest.mark.settings(provider="nvidia")
async def test_without_a_key_nobody_is_asked(fetch: Fetch, upstream: OpenAIServer) -> None:
    found = await ask(fetch)
    assert (found["live"], upstream.listings) == (False, 0)
    assert "NVIDIA_API_KEY" in found["reason"]


@pytest.mark.gen_test
async def test_new_settings_ask_the_new_provider(fetch: Fetch, upstream: OpenAIServer, parts: Parts) -> None:
    await ask(fetch)
    with OpenAIServer() as other:
        other.models = listing(page("of the other"))
        old = parts.plan
        flags = {**old.flags, "base_url": other.url}
        await parts.adopt(await asyncio.to_thread(daemon.plan, flags, old.workspace, old.env), None)
        assert [model["name"] for model in (await ask(fetch))["models"]] == [harness.MODEL, "of the other"]
        assert (upstream.listings, other.listings) == (1, 1)
