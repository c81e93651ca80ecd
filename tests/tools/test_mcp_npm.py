"""MCP servers that others publish, installed with npm as users do."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from pawand.config import Mcp
from tests.conftest import LogWatch
from tests.npm import needs_npm, node_processes
from tests.tools.conftest import Bench, MakeBench, needs_bwrap, reached, running
from tests.tools.test_mcp import started

pytestmark = [pytest.mark.slow, needs_npm]


@pytest.fixture(params=[pytest.param("require", marks=needs_bwrap), "off"])
def bench_of_npm(request: pytest.FixtureRequest, make_bench: MakeBench, npm_bin: Path) -> Bench:
    return make_bench(request.param, read_only_paths=[npm_bin.parents[1]])


def test_the_file_system_server_works_in_the_workspace(bench_of_npm: Bench, npm_bin: Path, outside: Path) -> None:
    bench = bench_of_npm
    (bench.root / "a.txt").write_text("one\n")
    files = Mcp(command=str(npm_bin / "mcp-server-filesystem"), args=[str(bench.root)])

    async def main() -> None:
        async with started(bench, files=files) as made:
            tools = await made.tools()
            assert {"mcp_files_read_text_file", "mcp_files_write_file", "mcp_files_list_directory"} <= set(tools)
            assert await made.ok("mcp_files_read_text_file", path=f"{bench.root}/a.txt") == "one\n"
            await made.ok("mcp_files_write_file", path=f"{bench.root}/b.txt", content="zwei\n")
            assert (bench.root / "b.txt").read_text() == "zwei\n"
            assert await made.ok("mcp_files_list_directory", path=str(bench.root)) == "[FILE] a.txt\n[FILE] b.txt"
            assert "denied" in await made.error("mcp_files_read_text_file", path=f"{outside}/secret.txt")

    asyncio.run(main())
    assert not running(f"server-filesystem {bench.root}")


def test_the_server_of_everything_is_killed_in_a_call_and_comes_back(
    bench_of_npm: Bench, npm_bin: Path, log_watch: LogWatch
) -> None:
    bench = bench_of_npm
    log_watch.expect("MCP server every has ended: it ended")
    marker = f"stdio-{bench.root.parent.name}"
    every = Mcp(command="sh", args=["-c", 'exec "$0" stdio "$1"', str(npm_bin / "mcp-server-everything"), marker])

    async def main() -> None:
        async with started(bench, every=every) as made:
            tools = await made.tools()
            assert len(tools) > 8
            assert await made.ok("mcp_every_echo", message="hi") == "Echo: hi"
            assert "image/png" in await made.ok("mcp_every_get-tiny-image")
            assert "5" in await made.ok("mcp_every_get-sum", a=2, b=3)
            long = "mcp_every_trigger-long-running-operation"
            assert "completed" in await made.ok(long, duration=1, steps=2)
            call = asyncio.create_task(made.error(long, duration=15, steps=5))
            short = asyncio.create_task(made.ok(long, duration=1, steps=1))
            assert "completed" in await short
            for pid in node_processes(marker):
                os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            assert await call == "the MCP server every has ended during the call; call again to start it anew"
            assert time.monotonic() - killed < 1
            assert await made.ok("mcp_every_echo", message="back") == "Echo: back"
        await reached(lambda: not running(marker))

    asyncio.run(main())
