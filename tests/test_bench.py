"""The benchmark: it looks at what it is sent, says what it measured, and fails where a goal is missed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from bench import answers
from bench.answers import WrongAnswerError, check, unchunked
from bench.client import Pings
from bench.figures import Figure
from bench.growth import grown
from bench.rig import run
from bench.upstream import Plan, token

ROOT = Path(__file__).parents[1]
PLAN = Plan(3)


def frame(number: int, name: str, **data: object) -> bytes:
    return f"id: abc-{number}\nevent: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


START = frame(7, "start", session_id="s", turn_id="t", model=PLAN.model)
TOKENS = [frame(8 + n, "token", content=token(n), iteration=1) for n in range(3)]
DONE = frame(11, "done", content="".join(map(token, range(3))))
WHOLE = [b"retry: 2000\n\n", START, *TOKENS, DONE]


def test_an_answer_that_is_whole_passes() -> None:
    check(b"".join(WHOLE), PLAN, bare=False)


WRONG: dict[str, list[bytes]] = {
    "a token is missing": [START, TOKENS[0], TOKENS[2], DONE],
    "a token came twice": [START, TOKENS[0], *TOKENS, DONE],
    "two tokens are exchanged": [START, TOKENS[0], TOKENS[2], TOKENS[1], DONE],
    "a token says something else": [START, *TOKENS[:2], TOKENS[2].replace(b"w2-", b"w3-"), DONE],
    "no start": [*TOKENS, DONE],
    "no done": [START, *TOKENS],
    "two done": [START, *TOKENS, DONE, frame(12, "done", content="")],
    "an event too many": [START, *TOKENS, frame(11, "retry", attempt=1), frame(12, "done", content="")],
    "done says less": [START, *TOKENS, frame(11, "done", content=token(0) + token(1))],
    "a hole in the ids": [START, *TOKENS, frame(12, "done", content="".join(map(token, range(3))))],
}


@pytest.mark.parametrize("name", WRONG)
def test_one_that_is_not_fails(name: str) -> None:
    with pytest.raises(WrongAnswerError):
        check(b"".join(WRONG[name]), PLAN, bare=False)


@pytest.mark.parametrize("lost", [b"w1-", b"data: [DONE]"])
def test_the_floor_s_answers_are_looked_at_too(lost: bytes) -> None:
    chunks = [b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % token(n).encode() for n in range(3)]
    whole = b"".join([*chunks, b"data: [DONE]\n\n"])
    check(whole, PLAN, bare=True)
    with pytest.raises(WrongAnswerError):
        check(b"".join(line for line in whole.splitlines(keepends=True) if lost not in line), PLAN, bare=True)


def test_a_status_that_is_not_200_is_no_answer() -> None:
    with pytest.raises(WrongAnswerError, match="429"):
        unchunked(b"HTTP/1.1 429 Too Many Requests\r\n\r\n{}")


def test_delays_are_from_the_write_of_each_token_to_the_piece_that_ended_it() -> None:
    first, second = (f'"content":"{token(n, 2_000_000_000 + n)}"'.encode() for n in range(2))
    pieces = [(2.5, first[:9]), (3.0, first[9:] + second[:4]), (4.0, second[4:])]
    assert [round(delay, 3) for delay in answers.delays(pieces)] == [1.0, 2.0]


def test_a_goal_holds_for_the_median_and_for_the_ratio_of_each_run_to_its_floor() -> None:
    figure = Figure(name="x", unit="s", values=[1, 9, 2], floor=[1, 1, 1], goal=2, ratio_goal=1.5)
    assert (figure.median, figure.ratio, figure.met) == (2, 2, False)
    assert Figure(name="x", unit="s", values=[1, 9, 2], goal=2).met is True
    assert Figure(name="x", unit="s", values=[1]).met is None


@pytest.mark.parametrize("rows", [2, 3])
def test_a_listing_that_lacks_rows_fails(rows: int) -> None:
    class Two(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"[1, 2]")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Two) as server:
        threading.Thread(target=server.handle_request).start()
        task = Pings(port=server.server_port, path="/sessions", count=1, rows=rows)
        if rows == 2:
            assert len(run(task).wholes) == 1
        else:
            with pytest.raises(RuntimeError, match="a client failed"):
                run(task)


def test_a_cost_may_grow_as_what_is_sent_and_no_faster() -> None:
    costs, sent = [[2.0], [20.0], [400.0]], [1, 10, 100]
    assert [figure.met for figure in grown(["a", "b", "c"], "s", costs, sent)] == [None, True, False]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)


@pytest.mark.slow
@pytest.mark.alone
def test_it_measures_a_real_daemon_beside_the_floor() -> None:
    """What it measures depends on the machine; that it measures does not."""
    done = bench("turn", "long-turn", "followers", "--runs", "1", "--json")
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    figures = {figure["name"]: figure for figure in found["figures"]}
    assert found["runs"] == 1
    assert figures["first token, warm"]["unit"] == "ms"
    for name in ("first token, warm", "CPU of a 20-token turn", "one turn of 2,000 tokens"):
        assert 0 < figures[name]["floor"][0] < figures[name]["median"]
        assert figures[name]["ratio"] > 1
    assert figures["… memory of each, from 100 to 1,000 of them"]["median"] > 1
    missed = [figure["name"] for figure in found["figures"] if figure["met"] is False]
    assert done.returncode == (1 if missed else 0)
    assert not missed or missed[0] in done.stderr


def test_an_unknown_scenario_is_named() -> None:
    done = bench("trun")
    assert done.returncode == 2
    assert "'trun'" in done.stderr
    assert "Traceback" not in done.stderr
