"""MCP servers: what the model is offered of them, what calls do, and that none of them can do harm."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from threading import enumerate as enumerate_threads
from typing import Any

import pytest

from pawand.config import Mcp
from pawand.errors import ToolError
from pawand.redact import MASK
from pawand.tools.base import Outcome, Registry, Tool
from pawand.tools.mcp import connection
from pawand.tools.mcp.servers import McpServers
from pawand.wire import ToolCall
from tests import harness
from tests.conftest import LogWatch
from tests.tools.conftest import SECRET, Bench, MakeBench, needs_bwrap, poll, reached, running

FAKES = Path(__file__).parents[1] / "fakes"


class Servers:
    """MCP servers over a bench, called as the agent calls them."""

    def __init__(self, bench: Bench, settings: dict[str, Mcp]) -> None:
        self.bench = bench
        self.all = McpServers(settings, bench.sandbox, bench.redactor)
        self.registry = Registry([], bench.redactor)

    async def tools(self) -> dict[str, Tool]:
        with harness.no_blocking():
            tools = await self.all.tools()
        self.registry = Registry(tools, self.bench.redactor)
        return {tool.name: tool for tool in tools}

    async def run(self, name: str, /, **arguments: Any) -> Outcome:
        call = ToolCall(id="call_1", name=name, arguments=arguments)
        parsed = self.registry.parse(call)
        with harness.no_blocking():
            return await self.registry.run(call, parsed, self.bench.context, self.bench.emitted.append)

    async def ok(self, name: str, /, **arguments: Any) -> Any:
        outcome = await self.run(name, **arguments)
        assert outcome.success, outcome.content
        return outcome.content

    async def error(self, name: str, /, **arguments: Any) -> str:
        outcome = await self.run(name, **arguments)
        assert not outcome.success, outcome.content
        error = outcome.content["error"]
        assert isinstance(error, str)
        assert "internal error" not in error
        return error


@asynccontextmanager
async def started(bench: Bench, **settings: Mcp) -> AsyncIterator[Servers]:
    """With the tools of all servers listed once; at the end nothing of them is left."""
    made = Servers(bench, settings)
    try:
        await made.tools()
        yield made
    finally:
        begun = time.monotonic()
        await made.all.aclose()
        assert time.monotonic() - begun < 3
    assert not running(f"{bench.root}/mcp_")


def fake(bench: Bench, *arguments: str, **more: Any) -> Mcp:
    """The server of tests/fakes, from the workspace: there the sandbox shows it."""
    name = "mcp_hostile.py" if arguments else "mcp_server.py"
    shutil.copy(FAKES / name, bench.root)
    return Mcp(command=sys.executable, args=[f"{bench.root}/{name}", *arguments], **more)


# --- what users get -------------------------------------------------------------------------------


def test_nothing_is_started_or_imported_before_the_first_turn(bench: Bench) -> None:
    code = "import sys, pawand.tools.mcp.servers as it; it.McpServers({}, None, None); print('mcp' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == "False\n"

    async def main() -> None:
        unused = Servers(bench, {"off": fake(bench, enabled=False)})
        assert await unused.tools() == {}
        await unused.all.aclose()
        made = Servers(bench, {"on": fake(bench)})
        assert not running(f"{bench.root}/mcp_")
        await made.all.aclose()
        assert await made.tools() == {}

    asyncio.run(main())


def test_tools_are_listed_and_called(shell_bench: Bench) -> None:
    async def main() -> None:
        async with started(shell_bench, my=fake(shell_bench)) as made:
            tools = await made.tools()
            assert list(tools)[:2] == ["mcp_my_echo", "mcp_my_look"]
            echo = tools["mcp_my_echo"]
            assert (echo.description, echo.read_only) == ("Say it again.", False)
            schema = made.registry.schemas[0]["function"]["parameters"]
            assert schema["required"] == ["text"]
            assert schema["properties"]["times"]["type"] == "integer"
            assert await made.ok("mcp_my_echo", text="hi", times=2) == "hi hi"
            assert await made.ok("mcp_my_echo", text="a\ud800b") == "a?b"
            assert await made.ok("mcp_my_show") == (
                "here\n[image/png, 5 bytes]\n[audio/wav, 5 bytes]\nhttp://example.com/x\n"
                "[file:///a: application/octet-stream, 5 bytes]"
            )
            assert await made.ok("mcp_my_numbers") == {"one": 1}
            assert await made.error("mcp_my_fail", text="broken") == "broken"
            assert "refused" in await made.ok("mcp_my_reach", host="127.0.0.1", port=1)

    asyncio.run(main())


def test_wrong_arguments_are_answered_with_the_schema_and_never_sent(bench: Bench) -> None:
    async def main() -> None:
        async with started(bench, my=fake(bench)) as made:
            for arguments, part in [({"times": 1}, "'text' is a required"), ({"text": 3}, "3 is not of type 'string'")]:
                with pytest.raises(ToolError) as caught:
                    made.registry.parse(ToolCall(id="1", name="mcp_my_echo", arguments=arguments))
                message = str(caught.value)
                assert message.startswith("wrong arguments for mcp_my_echo: ")
                assert part in message
                assert '"required":["text"]' in message

    asyncio.run(main())


def test_long_results_and_secrets_go_the_way_of_all_results(bench: Bench) -> None:
    bench.redactor.learn(["what-nobody-says"])

    async def main() -> None:
        async with started(bench, my=fake(bench, env={"API_KEY": SECRET, "PLAIN": "is shown to you"})) as made:
            assert len(await made.ok("mcp_my_echo", text="[{}]", times=1_000_000)) < 9000
            text = await made.ok("mcp_my_echo", text="word\n", times=100_000)
            assert len(text) < 9000
            assert "characters left out" in text
            assert await made.ok("mcp_my_echo", text="say what-nobody-says") == f"say {MASK}"
            assert await made.ok("mcp_my_environment", name="API_KEY") == MASK
            assert await made.ok("mcp_my_environment", name="PLAIN") == "is shown to you"

    asyncio.run(main())


def test_calls_of_one_server_run_at_the_same_time(bench: Bench) -> None:
    place = bench.root / "place"
    place.mkdir()

    async def main() -> None:
        async with started(bench, my=fake(bench)) as made:
            calls = (made.ok("mcp_my_meet", place=str(place), others=3) for _ in range(3))
            assert await asyncio.gather(*calls) == ["met"] * 3

    asyncio.run(main())


def test_a_server_that_says_so_is_listed_anew(bench: Bench) -> None:
    async def main() -> None:
        async with started(bench, my=fake(bench)) as made:
            assert await made.ok("mcp_my_grow") == "done"
            assert "mcp_my_grown" in await made.tools()
            assert await made.ok("mcp_my_grown") == "grown"

    asyncio.run(main())


@needs_bwrap
def test_the_settings_of_the_sandbox_are_those_of_the_server(make_bench: MakeBench, _own_home: Path) -> None:
    bench = make_bench("require", network=True)
    (_own_home / "private").touch()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    async def main() -> None:
        shown = fake(bench, sandbox=False)
        async with started(bench, inside=fake(bench), online=fake(bench, network=True), outside=shown) as made:
            assert "private" not in await made.ok("mcp_inside_look", path=str(_own_home))
            assert "private" in await made.ok("mcp_outside_look", path=str(_own_home))
            assert "mcp_server.py" in await made.ok("mcp_inside_look", path=".")
            assert "refused" in await made.ok("mcp_inside_reach", host="127.0.0.1", port=port)
            assert await made.ok("mcp_online_reach", host="127.0.0.1", port=port) == "reached"

    with listener:
        asyncio.run(main())


def test_a_sandbox_that_is_required_keeps_back_only_what_shall_run_in_it(
    make_bench: MakeBench, hide: Any, log_watch: LogWatch
) -> None:
    hide("bwrap")
    bench = make_bench("require")
    log_watch.expect("MCP server inside could not be started: programs may not be started: [sandbox] mode is require")

    async def main() -> None:
        async with started(bench, inside=fake(bench), outside=fake(bench, sandbox=False)) as made:
            assert {name.split("_")[1] for name in await made.tools()} == {"outside"}

    asyncio.run(main())


# --- ends -----------------------------------------------------------------------------------------


def test_a_call_that_is_cancelled_or_takes_too_long_ends_and_the_server_is_told(bench: Bench) -> None:
    bench.context.bash_timeout_secs = 1
    files = {name: bench.root / name for name in ("begun1", "ended1", "begun2", "ended2")}

    async def main() -> None:
        async with started(bench, my=fake(bench)) as made:
            first = asyncio.create_task(made.run("mcp_my_wait", begun=str(files["begun1"]), ended=str(files["ended1"])))
            await reached(files["begun1"].exists)
            first.cancel()
            begun = time.monotonic()
            await asyncio.wait([first])
            assert first.cancelled()
            assert time.monotonic() - begun < 0.3
            await reached(files["ended1"].exists)
            error = await made.error("mcp_my_wait", begun=str(files["begun2"]), ended=str(files["ended2"]))
            assert error == "the MCP server my did not answer within 1 s; the call was given up"
            await reached(files["ended2"].exists)
            assert await made.ok("mcp_my_echo", text="still here") == "still here"

    asyncio.run(main())


def test_a_server_killed_in_a_call_fails_it_at_once_and_the_next_call_starts_it_anew(
    shell_bench: Bench, log_watch: LogWatch
) -> None:
    log_watch.expect("MCP server my has ended: it ended")
    begun = shell_bench.root / "begun"

    async def main() -> None:
        async with started(shell_bench, my=fake(shell_bench)) as made:
            call = asyncio.create_task(made.error("mcp_my_wait", begun=str(begun), ended="x"))
            await reached(begun.exists)
            for pid in running(f"{shell_bench.root}/mcp_server.py"):
                if b"bwrap" not in Path(f"/proc/{pid}/cmdline").read_bytes() and not is_supervisor(pid):
                    os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            assert await call == "the MCP server my has ended during the call; call again to start it anew"
            assert time.monotonic() - killed < 1
            assert await made.ok("mcp_my_echo", text="back") == "back"

    asyncio.run(main())


def is_supervisor(pid: int) -> bool:
    return b"supervisor.py" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_server_that_dies_again_is_left_alone_for_a_while(
    bench: Bench, log_watch: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_watch.expect("MCP server my has ended")

    async def main() -> None:
        async with started(bench, my=fake(bench)) as made:
            assert "ended during the call" in await made.error("mcp_my_die")
            assert "ended during the call" in await made.error("mcp_my_die")
            await reached(lambda: not running(f"{bench.root}/mcp_server.py"))
            error = await made.error("mcp_my_echo", text="x")
            assert error.startswith("the MCP server my does not run (it ended); it may be tried again in ")
            before = time.monotonic()
            registry = made.registry
            assert await made.tools() == {}
            assert time.monotonic() - before < 0.2
            made.registry = registry
            now = time.monotonic
            monkeypatch.setattr(time, "monotonic", lambda: now() + 10)
            assert "mcp_my_echo" in await made.tools()

    asyncio.run(main())


def test_a_server_that_died_between_calls_is_told_of_and_comes_back(bench: Bench, log_watch: LogWatch) -> None:
    log_watch.expect("MCP server my has ended: it ended")

    async def main() -> None:
        async with started(bench, my=fake(bench)) as made:
            for pid in running(f"{bench.root}/mcp_server.py"):
                if not is_supervisor(pid):
                    os.kill(pid, signal.SIGKILL)
            await reached(lambda: len(log_watch.lines) == 1)
            error = await made.error("mcp_my_echo", text="x")
            assert error == "the MCP server my has ended since it was last used; call again to start it anew"
            assert await made.ok("mcp_my_echo", text="x") == "x"

    asyncio.run(main())


# --- servers that do harm -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("habit", "warning"),
    [
        ("exit", f"MCP server bad could not be started: it ended: cannot work: {MASK}"),
        ("nonsense", "MCP server bad could not be started: it ended"),
        ("hang", "MCP server bad could not be started: it did not answer within 1 s"),
        ("version", "MCP server bad could not be started: Unsupported protocol version from the server: 1999-01-01"),
    ],
)
def test_one_that_cannot_be_started_costs_one_warning_and_no_other_server(
    bench: Bench, log_watch: LogWatch, monkeypatch: pytest.MonkeyPatch, habit: str, warning: str
) -> None:
    bench.redactor.learn([SECRET])
    log_watch.expect(warning)

    async def main() -> None:
        async with started(bench, good=fake(bench)):
            pass
        monkeypatch.setattr(connection, "PROGRAM_SECS", 1.0)
        begun = time.monotonic()
        async with started(bench, bad=fake(bench, habit)) as made:
            assert time.monotonic() - begun < 2
            assert await made.tools() == {}
            await reached(lambda: len(log_watch.lines) == 1)

    asyncio.run(main())
    assert log_watch.lines == [f"pawand.tools.mcp.servers: {warning}"]


def test_one_bad_server_takes_nothing_from_the_others(bench: Bench, log_watch: LogWatch) -> None:
    log_watch.expect("MCP server bad could not be started")
    log_watch.expect("MCP server none could not be started")

    async def main() -> None:
        missing = Mcp(command="no-such-program")
        async with started(bench, bad=fake(bench, "exit"), none=missing, good=fake(bench, "fine")) as made:
            assert list(await made.tools()) == ["mcp_good_call"]
            assert await made.ok("mcp_good_call") == "call"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("habit", "reason", "mib"),
    [
        ("flood", "it wrote a line of more than 16 MiB", 100),
        ("ask", "it asks faster than it reads our answers", 100),
        ("parts", "it sent an answer of too many parts", 200),
    ],
)
def test_one_that_floods_is_dropped(bench: Bench, log_watch: LogWatch, habit: str, reason: str, mib: int) -> None:
    log_watch.expect(f"MCP server bad has ended: {reason}")

    async def main() -> None:
        async with started(bench, bad=fake(bench, habit)) as made:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            assert "has ended during the call" in await made.error("mcp_bad_call")
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < mib * 1024
            await reached(lambda: bool(log_watch.lines))

    asyncio.run(main())


def test_an_answer_that_is_no_result_is_a_failure_of_the_call(bench: Bench) -> None:
    async def main() -> None:
        async with started(bench, bad=fake(bench, "no-result")) as made:
            assert await made.error("mcp_bad_call") == "the MCP server bad answered what is no result of a tool"
            assert await made.error("mcp_bad_call") == "the MCP server bad answered what is no result of a tool"

    asyncio.run(main())


def test_text_that_is_no_unicode_arrives(bench: Bench) -> None:
    async def main() -> None:
        async with started(bench, odd=fake(bench, "surrogate")) as made:
            assert await made.ok("mcp_odd_call") == "a?b"

    asyncio.run(main())


def test_what_a_server_asks_of_us_is_declined(bench: Bench) -> None:
    async def main() -> None:
        async with started(bench, bad=fake(bench, "asks-once")) as made:
            assert "Sampling not supported" in await made.ok("mcp_bad_call")

    asyncio.run(main())


def test_schemas_that_are_none_are_left_out_and_costly_ones_cost_nothing(bench: Bench, log_watch: LogWatch) -> None:
    log_watch.expect("MCP server bad: 4 tools are not used; 'list': its schema is not one of an object")

    async def main() -> None:
        async with started(bench, bad=fake(bench, "schemas")) as made:
            tools = await made.tools()
            assert list(tools) == [f"mcp_bad_{name}" for name in ("good", "slow", "twice", "loop", "away", "within")]
            assert len(tools["mcp_bad_slow"].description) == 2001
            with pytest.raises(ToolError, match=r"'x' is not of type 'integer' \(at \$\.n\)"):
                made.registry.parse(ToolCall(id="1", name="mcp_bad_good", arguments={"n": "x"}))
            with pytest.raises(ToolError, match="Additional properties are not allowed"):
                made.registry.parse(ToolCall(id="1", name="mcp_bad_good", arguments={"m": 1}))
            begun = time.monotonic()
            for name in ("slow", "twice", "loop", "away", "within"):
                assert "a" * 40 + "!" in await made.ok(f"mcp_bad_{name}", a="a" * 40 + "!")
            assert time.monotonic() - begun < 2

    asyncio.run(main())


@pytest.mark.parametrize(
    ("habit", "taken", "reason"),
    [
        ("unlike", 5, "1 tools are not used; 'heavy5': the schemas before it fill 256 KiB"),
        ("empty", 0, "6 tools are not used; 'heavy0': its schema, with those before it, takes too long to check"),
        ("wide", 0, "6 tools are not used; 'heavy0': its schema, with those before it, takes too long to check"),
        ("odd", 0, "6 tools are not used; 'heavy0': its schema is none: TypeError"),
    ],
)
def test_schemas_that_are_much_work_are_left_out_before_it_is_done(
    bench: Bench, log_watch: LogWatch, habit: str, taken: int, reason: str
) -> None:
    log_watch.expect(f"MCP server bad: {reason}")

    async def main() -> None:
        begun = time.process_time()
        async with started(bench, bad=fake(bench, habit)) as made:
            assert time.process_time() - begun < 8
            assert list(await made.tools()) == ["mcp_bad_good", *(f"mcp_bad_heavy{n}" for n in range(taken))]

    asyncio.run(main())


def test_a_check_that_outlasts_the_limit_takes_one_thread_and_none_of_the_daemons(
    bench: Bench, log_watch: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_watch.expect("MCP server bad could not be started: it did not answer within 0.5 s")
    monkeypatch.setattr(connection, "PROGRAM_SECS", 0.5)
    now, ahead = time.monotonic, 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now() + ahead)

    async def main() -> None:
        nonlocal ahead
        made = Servers(bench, {"bad": fake(bench, "empty")})
        try:
            for _ in range(3):
                listing = asyncio.create_task(made.tools())
                while not listing.done():
                    await asyncio.sleep(0.02)
                    assert threads_in("accept") in ([], ["mcp-bad_0"])
                await asyncio.sleep(0.2)
                ahead += 100  # it may be started again
        finally:
            await made.all.aclose()

    asyncio.run(main())


def threads_in(function: str) -> list[str]:
    """The names of the threads that run a function of this name."""
    frames = sys._current_frames()
    return [
        thread.name
        for thread in enumerate_threads()
        if any(frame.f_code.co_name == function for frame, _ in traceback.walk_stack(frames.get(thread.ident or 0)))
    ]


def test_schemas_still_name_nothing_twice_and_have_expressions_that_are_some(bench: Bench, log_watch: LogWatch) -> None:
    log_watch.expect("MCP server bad: 2 tools are not used; 'repeats': its schema is none: ['a', 'a'] has non-unique")

    async def main() -> None:
        async with started(bench, bad=fake(bench, "refused")) as made:
            assert list(await made.tools()) == ["mcp_bad_good"]

    asyncio.run(main())


def test_no_schema_makes_the_check_of_arguments_long(bench: Bench) -> None:
    costly: dict[str, list[Any]] = {
        "enum": [[6999]] * 500,
        "contains": [[-1]] * 500,
        "const": [[[n] for n in range(6999)] + [[-1]]] * 100,
        "any": ["word"] * 20_000,
        "empty": [0] * 200_000,
        "twice": [],
    }

    async def main() -> None:
        async with started(bench, bad=fake(bench, "costly")) as made:
            for name, items in costly.items():
                call = ToolCall(id="1", name=f"mcp_bad_{name}", arguments={"a": items})
                begun = time.thread_time()
                made.registry.parse(call)
                assert time.thread_time() - begun < 0.12, name

    asyncio.run(main())


def test_names_fit_providers_and_no_tool_takes_that_of_another(bench: Bench) -> None:
    async def main() -> None:
        async with started(bench, my=fake(bench, "names"), my_a=fake(bench, "names")) as made:
            tools = await made.tools()
            assert len(tools) == 14
            assert all(len(name) <= 64 and name.isascii() for name in tools)
            assert await made.ok("mcp_my_a_b") == "a_b"
            plain = {await made.ok(name) for name in tools if name.startswith("mcp_my_a_b_")}
            assert plain == {"a.b", "a b"}
            assert list(await made.tools()) == list(tools)

    asyncio.run(main())


def test_a_list_without_end_is_cut(bench: Bench, log_watch: LogWatch) -> None:
    async def main() -> None:
        async with started(bench, bad=fake(bench, "pages")) as made:
            assert len(await made.tools()) == 128

    asyncio.run(main())
    assert not log_watch.lines


def test_aclose_ends_servers_that_are_still_starting(bench: Bench) -> None:
    async def main() -> None:
        made = Servers(bench, {"bad": fake(bench, "hang")})
        turn = asyncio.create_task(made.tools())
        await reached(lambda: bool(running(f"{bench.root}/mcp_hostile.py")))
        await made.all.aclose()
        assert await turn == {}
        assert not running(f"{bench.root}/mcp_hostile.py")

    asyncio.run(main())


def test_a_missing_package_is_named_once(bench: Bench, log_watch: LogWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    log_watch.expect("run: pip install 'pawand[mcp]'")
    monkeypatch.setitem(sys.modules, "pawand.tools.mcp.connection", None)

    async def main() -> None:
        async with started(bench, my=fake(bench)) as made:
            assert await made.tools() == {}

    asyncio.run(main())
    assert len(log_watch.lines) == 1


# --- HTTP -----------------------------------------------------------------------------------------


@contextmanager
def http_server(port: int) -> Iterator[None]:
    with subprocess.Popen([sys.executable, FAKES / "mcp_server.py", str(port)], stderr=subprocess.DEVNULL) as child:
        try:
            assert poll(lambda: answers(port))
            yield
        finally:
            child.kill()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
        assert isinstance(number, int)
        return number


def test_a_server_on_http_gets_its_headers_and_may_die_and_return(bench: Bench, port: int, log_watch: LogWatch) -> None:
    log_watch.expect("MCP server far")
    far = Mcp(url=f"http://127.0.0.1:{port}/mcp", headers={"X-Color": "blue", "Authorization": "Bearer abcdefgh12"})

    async def main() -> None:
        with http_server(port):
            made = Servers(bench, {"far": far})
            await made.tools()
            assert await made.ok("mcp_far_header", name="x-color") == "blue"
            assert await made.ok("mcp_far_header", name="authorization") == MASK
            assert await made.ok("mcp_far_echo", text="abcdefgh12") == MASK
            begun, ended = bench.root / "begun", bench.root / "ended"
            call = asyncio.create_task(made.run("mcp_far_wait", begun=str(begun), ended=str(ended)))
            await reached(begun.exists)
            call.cancel()
            await reached(ended.exists)
            begun.unlink()
            call = asyncio.create_task(made.run("mcp_far_wait", begun=str(begun), ended=str(ended)))
            await reached(begun.exists)
        assert not (await call).success
        assert not (await made.run("mcp_far_echo", text="x")).success
        with http_server(port):
            await reached_again(made)
            await made.all.aclose()

    asyncio.run(main())


async def reached_again(made: Servers) -> None:
    """The session is lost, so that some calls fail; then one must come through."""
    for _ in range(40):
        outcome = await made.run("mcp_far_echo", text="again")
        if outcome.success:
            assert outcome.content == "again"
            return
        await asyncio.sleep(0.1)
    pytest.fail("the server was not reached again")


class Tricks(BaseHTTPRequestHandler):
    """Answers by its path with what no client should fall for."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/redirect":
            self.send_response(307)
            self.send_header("Location", "/other")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/packed":
            self.reply(b"x", {"Content-Encoding": "gzip"})
        elif self.path == "/long":
            self.reply(b'"' + b"x" * (17 * 1024 * 1024), {})
        elif self.path == "/other":
            raise AssertionError("followed")
        else:
            self.reply(b"<html>", {"Content-Type": "text/html"})

    def reply(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def tricks() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Tricks) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/redirect", "it answers with a redirect (307); set the url that it leads to"),
        ("/packed", "it packs its answers though it was asked not to"),
        ("/long", "it sent an answer of more than 4 MiB"),
        ("/page", "Unexpected content type: text/html"),
    ],
)
def test_tricks_on_http_end_the_connection(
    bench: Bench, log_watch: LogWatch, tricks: str, path: str, reason: str
) -> None:
    log_watch.expect(f"MCP server far could not be started: {reason}")

    async def main() -> None:
        async with started(bench, far=Mcp(url=tricks + path)) as made:
            assert await made.tools() == {}

    asyncio.run(main())
    assert len(log_watch.lines) == 1


def test_nobody_at_the_address(bench: Bench, log_watch: LogWatch, port: int) -> None:
    log_watch.expect("MCP server far could not be started: ")

    async def main() -> None:
        begun = time.monotonic()
        async with started(bench, far=Mcp(url=f"http://127.0.0.1:{port}/mcp")) as made:
            assert await made.tools() == {}
            assert time.monotonic() - begun < 3

    asyncio.run(main())
    assert poll(lambda: len(log_watch.lines) == 1)
