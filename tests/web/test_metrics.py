"""`/metrics`: what it counts, how it is written, and that no model can make it grow."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pawand import __version__, metrics, wire
from pawand.daemon import TOOLS, Parts
from pawand.metrics import Metrics
from tests import harness
from tests.conftest import LogWatch
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import DONE, OpenAIServer, Reply, chunk
from tests.web.conftest import Fetch, until

Labels = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, Labels], float]


def parse(text: str) -> Samples:
    """By Prometheus' own reading of it."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape(fetch: Fetch) -> Samples:
    answer = await fetch("/metrics")
    assert answer.code == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parse(answer.body.decode())


def total(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"pawand_{name}", tuple(sorted(labels.items()))]


def nonzero(samples: Samples, name: str) -> dict[Labels, float]:
    return {labels: value for (found, labels), value in samples.items() if found == f"pawand_{name}" and value}


async def chat(fetch: Fetch, **more: Any) -> int:
    answer = await fetch("/chat", body=json.dumps({"message": "hello", "session_id": "s", **more}).encode())
    return int(answer.code)


@pytest.mark.gen_test
async def test_a_turn_is_counted_with_its_times_and_tokens(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [fake.text("one"), fake.text("two", finish="length"), fake.text("three", finish="odd words")]
    before = await scrape(fetch)
    assert nonzero(before, "turns_total") == {}
    assert (
        total(before, "turns_total", outcome="stop") == 0
    )  # it is there before the first one, so that rates are right
    for _ in range(3):
        assert await chat(fetch) == 200
    after = await scrape(fetch)
    assert nonzero(after, "turns_total") == {
        (("outcome", "stop"),): 1,
        (("outcome", "length"),): 1,
        (("outcome", "other"),): 1,
    }
    assert total(after, "tokens_total", kind="prompt") == 30
    assert total(after, "tokens_total", kind="completion") == 15
    assert total(after, "turn_seconds_count") == total(after, "first_token_seconds_count") == 3
    assert 0 < total(after, "first_token_seconds_sum") <= total(after, "turn_seconds_sum") < 60
    assert total(after, "turn_seconds_bucket", le="+Inf") == 3


@pytest.mark.gen_test
@pytest.mark.settings(max_retries=1)
async def test_failures_retries_and_cancelled_turns(fetch: Fetch, upstream: OpenAIServer, log_watch: LogWatch) -> None:
    log_watch.expect("turn failed")
    upstream.script = [fake.refusal(503, retry_after="0"), fake.refusal(400), Reply([chunk({"content": "a"}), 30.0])]
    assert await chat(fetch) == 500
    waiting = asyncio.ensure_future(chat(fetch))
    await until(lambda: len(upstream.requests) == 3, "the third request")
    during = await scrape(fetch)
    assert total(during, "active_turns") == 1
    assert (await fetch("/sessions/s/cancel", method="POST", body=b"")).code == 200
    assert await waiting == 409
    after = await scrape(fetch)
    assert nonzero(after, "turns_total") == {(("outcome", "provider"),): 1, (("outcome", "cancelled"),): 1}
    assert total(after, "upstream_retries_total") == 1
    assert total(after, "active_turns") == 0
    assert nonzero(after, "tokens_total") == {}
    assert total(after, "turn_seconds_count") == 2


@pytest.mark.gen_test
async def test_tool_calls_by_name_and_success(fetch: Fetch, upstream: OpenAIServer, workspace: Path) -> None:
    (workspace / "a.txt").write_text("a")
    upstream.script = [
        fake.calls(
            ("read_file", {"path": "a.txt"}),
            ("read_file", {"path": "none.txt"}),
            ("read_file", {"wrong": 1}),
            ("made_up_by_the_model", {}),
            ('bash\n"} 1', {}),
        ),
        fake.text("done"),
    ]
    assert await chat(fetch) == 200
    after = await scrape(fetch)
    assert nonzero(after, "tool_calls_total") == {
        (("success", "true"), ("tool", "read_file")): 1,
        (("success", "false"), ("tool", "read_file")): 2,
        (("success", "false"), ("tool", "unknown")): 2,
    }
    assert total(after, "tool_seconds_count", tool="read_file") == 3
    assert total(after, "tool_seconds_count", tool="unknown") == 2


def test_no_server_can_make_the_list_of_tools_grow_without_end() -> None:
    async def shown() -> Samples:
        made = Metrics(tool.name for tool in TOOLS)
        for number in range(2000):
            name = f"mcp_server_{number}"
            started = wire.ToolStart(name=name, id="i", arguments={}, iteration=1)
            ended = wire.ToolComplete(name=name, success=True, duration_ms=5, result_preview="", id="i")
            made.observe([started, ended])
        return parse((await made.exposition()).decode())

    samples = asyncio.run(shown())
    counted = nonzero(samples, "tool_calls_total")
    assert len(counted) == metrics.MAX_TOOLS - len(TOOLS) + 1
    assert sum(counted.values()) == 2000
    assert counted[("success", "true"), ("tool", "unknown")] > 1000


@pytest.mark.gen_test
async def test_followers_and_turns_that_wait(fetch: Fetch, upstream: OpenAIServer, parts: Parts) -> None:
    upstream.script = [Reply([chunk({"content": "a"}), 30.0])]
    turns = [asyncio.ensure_future(chat(fetch))]
    await until(lambda: len(upstream.requests) == 1, "the first request")
    turns += [asyncio.ensure_future(chat(fetch)) for _ in range(2)]
    seen: list[bytes] = []
    follower = asyncio.ensure_future(fetch("/sessions/s/events", streaming_callback=seen.append))
    await until(lambda: b"event: token" in b"".join(seen), "the stream")
    await until(lambda: parts.services.turns.queued_turns == 2, "two that wait")
    during = await scrape(fetch)
    assert [total(during, name) for name in ("active_turns", "queued_turns", "followers")] == [1, 2, 1]
    assert (await fetch("/sessions/s", method="DELETE")).code == 204
    assert await asyncio.gather(*turns) == [409, 409, 409]
    await follower
    after = await scrape(fetch)
    assert [total(after, name) for name in ("active_turns", "queued_turns", "followers")] == [0, 0, 0]
    assert total(after, "turns_total", outcome="cancelled") == 3


@pytest.mark.gen_test
async def test_each_failure_of_the_store_counts_once(
    fetch: Fetch, upstream: OpenAIServer, state: Path, log_watch: LogWatch
) -> None:
    log_watch.expect("POST /chat")
    log_watch.expect("turn failed")
    log_watch.expect("GET /sessions")
    (state / "sessions").rename(state / "away")
    assert await chat(fetch) == 500  # the turn and its request tell of the same one
    assert total(await scrape(fetch), "store_errors_total") == 1
    assert (await fetch("/sessions")).code == 500
    samples = await scrape(fetch)
    assert total(samples, "store_errors_total") == 2
    assert total(samples, "turns_total", outcome="storage") == 1
    shutil.rmtree(state / "sessions", ignore_errors=True)
    (state / "away").rename(state / "sessions")


def test_the_loop_is_watched(tmp_path: Path, env: dict[str, str]) -> None:
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        samples = parse(pawand.call("GET", "/metrics")[1])
    passes = [total(samples, "loop_hold_seconds_bucket", le=le) for le in ("0.001", "0.05", "1.0", "+Inf")]
    assert passes == sorted(passes)
    assert passes[-1] == total(samples, "loop_hold_seconds_count") > 0
    assert 0 < total(samples, "loop_longest_hold_seconds") <= total(samples, "loop_hold_seconds_sum")


@pytest.mark.gen_test
async def test_who_it_is_and_how_the_process_is(fetch: Fetch) -> None:
    samples = await scrape(fetch)
    assert total(samples, "build_info", version=__version__) == 1
    assert samples["process_resident_memory_bytes", ()] > 1e6
    assert samples["process_open_fds", ()] > 3


@pytest.mark.gen_test
async def test_it_is_for_callers_with_full_access(fetch: Fetch) -> None:
    assert (await fetch("/metrics", headers={"Via": "1.1 x"})).code == 401
    assert (await fetch("/metrics", headers={"Origin": "https://evil.example"})).code == 403
    head = await fetch("/api/metrics", method="HEAD")
    assert (head.code, head.body) == (200, b"")
    assert head.headers["Content-Type"].startswith("text/plain")


@pytest.mark.gen_test
async def test_new_settings_keep_the_figures(fetch: Fetch, upstream: OpenAIServer, parts: Parts) -> None:
    upstream.script = [fake.text("one"), fake.text("two")]
    assert await chat(fetch) == 200
    await parts.adopt(await asyncio.to_thread(parts.plan.again), None)
    assert await chat(fetch) == 200
    assert total(await scrape(fetch), "turns_total", outcome="stop") == 2


@pytest.mark.gen_test
async def test_what_a_provider_says_of_its_tokens_cannot_break_a_turn(fetch: Fetch, upstream: OpenAIServer) -> None:
    usage = {"prompt_tokens": -5, "completion_tokens": 10**400, "total_tokens": "x"}
    odd = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
    upstream.script = [Reply([chunk({"content": "a"}), chunk({}, "stop"), odd, DONE])]
    assert await chat(fetch) == 200
    assert nonzero(await scrape(fetch), "tokens_total") == {}


def test_a_daemon_shows_its_connections(tmp_path: Path, env: dict[str, str]) -> None:
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        status, text = pawand.call("GET", "/metrics")
        assert status == 200
        assert total(parse(text), "connections") >= 1
        pawand.call("POST", "/sessions", {"session_id": "s"})
        stream = harness.Stream(pawand.url, "/sessions/s/events")
        assert total(parse(pawand.call("GET", "/metrics")[1]), "followers") == 1
        stream.close()


def test_every_figure_is_described() -> None:
    """In docs/operations.md, and there is none that is not."""
    text = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    described = set(re.findall(r"`(pawand_\w+)", text))
    made = asyncio.run(Metrics([]).exposition()).decode()
    families = {line.split()[2] for line in made.splitlines() if line.startswith("# TYPE pawand")}
    assert {name for name in families if not name.endswith("_created")} <= described
