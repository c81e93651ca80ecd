"""A real browser follows a session while the daemon dies, stops and starts again: its EventSource comes back by itself.

No driver is needed: the page (`fakes/page.html`) tells a server of the test what it shows, and is told what to say.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.harness import Stream

HTML = Path(__file__).parent / "fakes" / "page.html"
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # it asks for nothing but loopback
)

pytestmark = pytest.mark.slow


class Page:
    """The page in its browser, and the server that it comes from."""

    def __init__(self) -> None:
        self.loads = 0
        self.last: dict[str, Any] = {}
        """What it reported last: `lines` of (role, text), `events`, `states`, `sources`, `errors`."""
        self.browser: subprocess.Popen[bytes] | None = None
        self.log = Path()
        self._say: list[str] = []
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def open(self, browser: str, folder: Path, daemon: str, session: str) -> None:
        """Start the browser with the page that follows the session, its files below `folder`."""
        folder.mkdir()
        self.log = folder / "log"
        url = f"http://127.0.0.1:{self._server.server_port}/?daemon={daemon}&session={session}"
        with self.log.open("wb") as log:
            self.browser = subprocess.Popen(
                [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", url],
                env=harness.environment(folder, folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def close(self) -> None:
        """End the browser with all its processes, then the server."""
        if self.browser is not None:
            self.signal(signal.SIGKILL)
            self.browser.wait(10)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def signal(self, number: int) -> None:
        """Send a signal to every process of the browser."""
        assert self.browser is not None
        os.killpg(self.browser.pid, number)

    def say(self, message: str) -> None:
        """Have the page submit a message."""
        with self._changed:
            self._say.append(message)

    def wait(self, what: str, condition: Callable[[dict[str, Any]], Any], seconds: float = 15) -> dict[str, Any]:
        """The first report for which `condition` holds."""
        with self._changed:
            self._changed.wait_for(lambda: self.last and (self.last["errors"] or condition(self.last)), seconds)
            if self.last and not self.last["errors"] and condition(self.last):
                return self.last
        assert self.browser is not None
        raise AssertionError(
            f"not within {seconds} s, or the page failed: {what}\n"
            f"page reported: {json.dumps(self.last) if self.last else 'nothing'}\n"
            f"browser's exit code: {self.browser.poll()}, its last words: {self.log.read_text()[-1000:]}"
        )

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        page = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # a browser that is killed resets its connections
                    super().handle()

            def do_GET(self) -> None:
                if self.path.startswith("/?"):
                    page.loads += 1
                    self._answer("text/html", HTML.read_bytes())
                else:
                    self.send_error(404)

            def do_POST(self) -> None:
                report = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with page._changed:
                    page.last = report
                    say = page._say.pop(0) if page._say else None
                    page._changed.notify_all()
                self._answer("application/json", json.dumps(say).encode())

            def _answer(self, kind: str, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture
def browser() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        assert "CI" not in os.environ, "continuous integration installs a browser"
        pytest.skip(f"no browser is installed: none of {', '.join(NAMES)}")
    return found


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page()
    yield made
    made.close()


@pytest.fixture
def port() -> int:
    """A free one, below those that the kernel gives to clients: nobody may take it while no daemon listens."""
    for _ in range(100):
        chosen = random.randrange(20_000, 32_000)
        try:
            with socket.create_server(("127.0.0.1", chosen)):
                return chosen
        except OSError:
            continue
    raise AssertionError("no free port")


def text_of(report: dict[str, Any], line: int) -> str:
    return str(report["lines"][line][1])


def order(report: dict[str, Any]) -> list[str]:
    """The names of the events, tokens in a row as one."""
    return [name for name, _ in itertools.groupby(report["events"])]


def at(name: str) -> Callable[[dict[str, Any]], bool]:
    """The condition that the page's newest event is `name`."""
    return lambda report: report["events"][-1:] == [name]


def lost(report: dict[str, Any]) -> bool:
    return bool(report["states"][-1] == "connecting")


def held(tokens: Sequence[str], release: threading.Event) -> fake.Reply:
    """An answer that stops after its first token until it is released."""

    def parts() -> Iterator[bytes | float]:
        yield fake.chunk({"role": "assistant", "content": tokens[0]})
        while not release.is_set():
            yield 0.02
        for token in tokens[1:]:
            yield fake.chunk({"content": token})
        yield from (fake.chunk({}, "stop"), fake.usage(), fake.DONE)

    return fake.Reply(cast(Sequence[bytes | float], parts()))


ENDLESS = [f"t{n} " for n in range(2000)]
"""Tokens of an answer that is cut long before its end."""


def begin(page: Page, browser: str, pawand: harness.Process, folder: Path) -> None:
    """Open the page on a new session."""
    pawand.call("POST", "/sessions", {"session_id": "s"})
    page.open(browser, folder, pawand.url, "s")
    page.wait("the page follows the session", lambda report: report["states"] == ["open"], 30)


def kill_in_the_middle(page: Page, pawand: harness.Process) -> str:
    """Kill the daemon while the page shows the first answer; what the page had of it."""
    page.say("first")
    page.wait("tokens are shown", lambda report: report["events"].count("token") >= 5)
    pawand.kill()
    report = page.wait("the page lost its connection", lost)
    assert order(report) == ["start", "token"]
    assert report["lines"][0] == ["user", "first"]
    return text_of(report, 1)


def recovered(pawand: harness.Process, shown: str) -> str:
    """The interrupted first answer of the session, which must hold all that was shown."""
    stored = pawand.call("GET", "/sessions/s")[1]["messages"]
    assert stored[1]["interrupted"] is True
    partial = str(stored[1]["content"])
    assert partial.startswith(shown)
    assert "".join(ENDLESS).startswith(partial)
    return partial


def check_end(page: Page, pawand: harness.Process, report: dict[str, Any], lines: list[list[str]]) -> None:
    """The page shows exactly `lines`, as does the session, and has come back once with its one EventSource."""
    assert report["lines"] == lines
    stored = pawand.call("GET", "/sessions/s")[1]["messages"]
    assert [[message["role"], message["content"]] for message in stored if message["role"] != "tool"] == lines
    assert (page.loads, report["sources"]) == (1, 1)
    assert report["events"].count("resync") == 1
    assert (report["states"][0], report["states"][-1], report["states"].count("open")) == ("open", "open", 2)
    assert "closed" not in report["states"]


def test_a_browser_follows_a_turn_across_a_kill_and_a_restart(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str], browser: str, page: Page, port: int
) -> None:
    upstream.script = [fake.text(*ENDLESS, pause=0.05), fake.text("all ", "is ", "well", pause=0.05)]
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, port=port) as pawand:
        begin(page, browser, pawand, tmp_path / "b")
        shown = kill_in_the_middle(page, pawand)
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, port=port) as pawand:
        report = page.wait("the session is read again", at("resync"))
        partial = recovered(pawand, shown)
        before = [["user", "first"], ["assistant", partial]]
        assert report["lines"] == before
        page.say("second")
        report = page.wait("the second turn is done", at("done"))
        assert order(report) == ["start", "token", "resync", "start", "token", "done"]
        check_end(page, pawand, report, [*before, ["user", "second"], ["assistant", "all is well"]])


def test_a_browser_that_slept_through_a_restart_joins_the_running_turn(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str], browser: str, page: Page, port: int
) -> None:
    release = threading.Event()
    look = fake.calls(("list_directory", {"path": "."}), say="I look. ")
    upstream.script = [fake.text(*ENDLESS, pause=0.05), look, held(("all ", "is ", "well"), release)]
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, port=port) as pawand:
        begin(page, browser, pawand, tmp_path / "b")
        shown = kill_in_the_middle(page, pawand)
        page.signal(signal.SIGSTOP)
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, port=port) as pawand:
        partial = recovered(pawand, shown)
        submitted = pawand.call("POST", "/sessions/s/messages", {"message": "second"})[1]
        other = Stream(pawand.url, f"/sessions/s/events?after={submitted['last_event_id']}")
        other.read_until("token", 2)
        assert len(pawand.call("GET", "/sessions/s")[1]["messages"]) == 5  # with the first iteration of this turn
        page.signal(signal.SIGCONT)
        turn = ["start", "token", "tool_start", "tool_complete", "token"]
        report = page.wait(
            "the running turn is shown from its start",
            lambda report: order(report) == ["start", "token", "resync", *turn],
        )
        lines = [["user", "first"], ["assistant", partial], ["user", "second"], ["assistant", "I look. "]]
        assert report["lines"] == [*lines, ["assistant", "all "]]
        release.set()
        report = page.wait("the second turn is done", at("done"))
        other.read_until("done")
        other.close()
        check_end(page, pawand, report, [*lines, ["assistant", "all is well"]])


def test_a_browser_comes_back_after_a_graceful_restart_between_two_turns(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str], browser: str, page: Page, port: int
) -> None:
    upstream.script = [fake.text("one ", "answer"), fake.text("another ", "answer")]
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, port=port) as pawand:
        begin(page, browser, pawand, tmp_path / "b")
        page.say("first")
        page.wait("the first turn is done", at("done"))
    page.wait("the page lost its connection", lost)
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, port=port) as pawand:
        page.wait("the session is read again", at("resync"))
        page.say("second")
        report = page.wait("the second turn is done", at("done"))
        assert order(report) == ["start", "token", "done", "resync", "start", "token", "done"]
        lines = [["user", "first"], ["assistant", "one answer"], ["user", "second"], ["assistant", "another answer"]]
        check_end(page, pawand, report, lines)
