"""MCP servers that others publish, in a running daemon: offered, permitted, killed, and gone with the daemon."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import Dialogue, OpenAIServer
from tests.harness import Stream, until
from tests.npm import needs_npm, node_processes
from tests.tools.conftest import needs_bwrap, running

pytestmark = [pytest.mark.slow, needs_npm, needs_bwrap]

LONG = "mcp_everything_trigger-long-running-operation"


class Place:
    """Where a daemon with these servers works. `marker` stands in the command lines of both."""

    def __init__(self, tmp_path: Path, npm_bin: Path) -> None:
        self.workspace = tmp_path / "w"
        self.workspace.mkdir()
        self.state = tmp_path / "s"
        self.marker = f"{self.workspace}"
        self._bin = npm_bin

    def config(self, more: str = "", *, everything: bool = True, files: bool = True) -> str:
        """The text of a settings file, with `more` tables at its end."""
        text = f"""
            [sandbox]
            mode = "require"
            read_only_paths = ["{self._bin.parents[1]}"]
        """
        if files:
            text += f"""
                [mcp.files]
                command = "{self._bin}/mcp-server-filesystem"
                args = ["{self.workspace}"]
            """
        if everything:
            text += f"""
                [mcp.everything]
                command = "{self._bin}/mcp-server-everything"
                args = ["stdio", "{self.marker}"]
            """
        return text + more

    def nodes(self) -> list[int]:
        """The servers that run."""
        return node_processes(self.marker)

    def gone(self) -> bool:
        """Whether nothing of a server runs, what starts it included; the daemon's command line has the marker too."""
        return not {*running(self.marker)} & {*running("mcp-server-")}


@pytest.fixture
def place(tmp_path: Path, npm_bin: Path) -> Place:
    return Place(tmp_path, npm_bin)


def chat(pawand: harness.Process, message: str = "go") -> Stream:
    return Stream(pawand.url, "/chat/stream", {"message": message, "session_id": "s"}, 60)


def of_tools(events: list[harness.Event]) -> list[tuple[str, str, Any]]:
    """(event, tool, what became of it) of what happened to calls."""
    return [
        (name, str(data.get("name") or data.get("tool") or data.get("decision")), data.get("success"))
        for name, data in events
        if name in ("tool_start", "tool_complete", "permission_request", "permission_resolved")
    ]


def decide(pawand: harness.Process, asked: dict[str, Any], decision: str) -> None:
    answer = pawand.call("POST", f"/sessions/s/permissions/{asked['id']}", {"decision": decision})
    assert answer == (200, {"decision": decision})


def stop(pawand: harness.Process, seconds: float) -> None:
    """In good order and in time."""
    began = time.monotonic()
    pawand.process.send_signal(signal.SIGTERM)
    assert pawand.process.wait(seconds + 10) == 0
    assert time.monotonic() - began < seconds


def test_tools_are_offered_called_and_held_to_the_permissions(
    place: Place, upstream: OpenAIServer, env: dict[str, str], tmp_path: Path
) -> None:
    workspace = place.workspace
    (workspace / "a.txt").write_text("one\n")
    (tmp_path / "outside.txt").write_text("what no tool may show")
    results: list[Any] = []
    denied = {"tool": "mcp_files_write_file", "input": {"path": f"{workspace}/b.txt", "content": "x"}}

    def conversation() -> fake.Conversation:
        results.extend((yield fake.calls(("mcp_files_list_directory", {"path": f"{workspace}"}))))
        results.extend((yield fake.calls(("mcp_files_read_text_file", {"path": f"{workspace}/a.txt"}))))
        results.extend((yield fake.calls(("mcp_files_read_text_file", {"path": f"{tmp_path}/outside.txt"}))))
        results.extend((yield fake.calls(("mcp_files_write_file", {"path": f"{workspace}/b.txt", "content": "x"}))))
        results.extend((yield fake.calls(("batch", {"calls": [denied, {"tool": "read_file", "path": "a.txt"}]}))))
        results.extend((yield fake.calls(("mcp_everything_echo", {"message": "hi"}))))
        results.extend((yield fake.calls(("mcp_everything_get-sum", {"a": 2, "b": 3}))))
        results.extend((yield fake.calls(("mcp_everything_echo", {"message": "again"}))))
        results.extend((yield fake.calls(("mcp_everything_get-env", {}))))
        yield fake.text("done")

    upstream.script = model = Dialogue(conversation())
    rules = '\n[permissions]\nmcp_files_write_file = "deny"\n"mcp_everything_*" = "prompt"\n'
    with harness.serve(workspace, place.state, env=env, config=place.config(rules)) as pawand:
        assert not place.nodes(), "nothing is started before it is needed"
        turn = chat(pawand)
        for count, decision in ((1, "allow_session"), (2, "deny"), (3, "allow")):
            asked = [data for name, data in turn.read_until("permission_request", count) if "expires_at" in data][-1]
            decide(pawand, asked, decision)
        events = turn.read_rest()
        model.check()
        assert len(place.nodes()) == 2
        stop(pawand, 5)
        until(place.gone, "no server is left")
    offered = {tool["function"]["name"] for tool in upstream.requests[0]["tools"]}
    assert {"mcp_files_read_text_file", "mcp_files_list_directory", "mcp_everything_echo", LONG, "bash"} <= offered
    listed, read, outside, written, batch, echo, added, again, environment = results
    assert listed == "[FILE] a.txt"
    assert read == "one\n"
    assert "denied" in outside["error"]
    assert "mcp_files_write_file is denied by [permissions]" in written["error"]
    assert [row["success"] for row in batch["results"]] == [False, True], "in a batch too"
    assert not (workspace / "b.txt").exists()
    assert (echo, again) == ("Echo: hi", "Echo: again")
    assert "the user denied this call of mcp_everything_get-sum" in added["error"]
    shown = json.dumps(environment)
    assert "PATH" in shown
    assert "OPENAI" not in shown
    assert harness.API_KEY not in shown
    assert of_tools(events) == [
        ("tool_start", "mcp_files_list_directory", None),
        ("tool_complete", "mcp_files_list_directory", True),
        ("tool_start", "mcp_files_read_text_file", None),
        ("tool_complete", "mcp_files_read_text_file", True),
        ("tool_start", "mcp_files_read_text_file", None),
        ("tool_complete", "mcp_files_read_text_file", False),
        ("tool_complete", "mcp_files_write_file", False),
        ("tool_start", "batch", None),
        ("tool_complete", "batch", False),
        ("permission_request", "mcp_everything_echo", None),
        ("permission_resolved", "allow_session", None),
        ("tool_start", "mcp_everything_echo", None),
        ("tool_complete", "mcp_everything_echo", True),
        ("permission_request", "mcp_everything_get-sum", None),
        ("permission_resolved", "deny", None),
        ("tool_complete", "mcp_everything_get-sum", False),
        ("tool_start", "mcp_everything_echo", None),
        ("tool_complete", "mcp_everything_echo", True),
        ("permission_request", "mcp_everything_get-env", None),
        ("permission_resolved", "allow", None),
        ("tool_start", "mcp_everything_get-env", None),
        ("tool_complete", "mcp_everything_get-env", True),
    ]
    assert events[-1][1]["content"] == "done"
    assert "MCP server" not in pawand.log_text()
    assert "Traceback" not in pawand.log_text()


def test_one_that_is_killed_in_a_call_is_started_again_by_the_next(
    place: Place, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    results: list[Any] = []

    def conversation() -> fake.Conversation:
        results.extend((yield fake.calls(("mcp_everything_echo", {"message": "one"}))))
        results.extend((yield fake.calls((LONG, {"duration": 50, "steps": 5}))))
        results.extend((yield fake.calls(("mcp_everything_echo", {"message": "two"}))))
        yield fake.text("done")
        yield fake.text("still there")

    upstream.script = model = Dialogue(conversation())
    with harness.serve(place.workspace, place.state, env=env, config=place.config(files=False)) as pawand:
        turn = chat(pawand)
        turn.read_until("tool_start", 2)
        [first] = place.nodes()
        os.kill(first, signal.SIGKILL)
        killed = time.monotonic()
        turn.read_until("tool_complete", 2)
        assert time.monotonic() - killed < 2
        events = turn.read_rest()
        model.check()
        [second] = place.nodes()
        assert second != first
        assert chat(pawand).read_rest()[-1][1]["content"] == "still there"
        assert place.nodes() == [second]
        stop(pawand, 5)
        until(place.gone, "no server is left")
    ended = "the MCP server everything has ended during the call; call again to start it anew"
    assert results == ["Echo: one", {"error": ended, "tool": LONG}, "Echo: two"]
    assert [success for name, _, success in of_tools(events) if name == "tool_complete"] == [True, False, True]
    assert events[-1][1]["content"] == "done"
    assert pawand.log_text().count("MCP server") == 1
    assert "MCP server everything has ended: it ended" in pawand.log_text()


def test_a_call_that_runs_does_not_hold_up_the_end(place: Place, upstream: OpenAIServer, env: dict[str, str]) -> None:
    upstream.script = [fake.calls((LONG, {"duration": 50, "steps": 5}))]
    config = place.config("\n[server]\ndrain_secs = 1\n")
    with harness.serve(place.workspace, place.state, env=env, config=config) as pawand:
        turn = chat(pawand)
        turn.read_until("tool_start")
        assert len(place.nodes()) == 2
        stop(pawand, 1 + 4)
        assert turn.read_rest()[-1][1]["code"] == "shutdown"
        until(place.gone, "no server is left")
    asked, called, result = pawand.stored("s")
    assert (asked["role"], called["tool_calls"][0]["name"]) == ("user", LONG)
    assert result["tool_result"]["success"] is False
    assert "interrupted" in result["content"]


def test_a_daemon_that_is_killed_takes_them_along(place: Place, upstream: OpenAIServer, env: dict[str, str]) -> None:
    upstream.script = [fake.calls((LONG, {"duration": 50, "steps": 5}))]
    with harness.serve(place.workspace, place.state, env=env, config=place.config()) as pawand:
        turn = chat(pawand)
        turn.read_until("tool_start")
        assert len(place.nodes()) == 2
        pawand.kill()
        until(place.gone, "no server is left")
        turn.close()


def test_one_that_cannot_start_costs_a_line_in_the_log(
    place: Place, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    def conversation() -> fake.Conversation:
        [listed] = yield fake.calls(("mcp_files_list_directory", {"path": f"{place.workspace}"}))
        [unknown] = yield fake.calls(("mcp_broken_echo", {"message": "hi"}))
        yield fake.text(json.dumps([listed, unknown["error"]]))

    upstream.script = model = Dialogue(conversation())
    broken = f'\n[mcp.broken]\ncommand = "sh"\nargs = ["-c", "echo no such thing >&2; exit 3", "{place.marker}"]\n'
    with harness.serve(place.workspace, place.state, env=env, config=place.config(broken, everything=False)) as pawand:
        (place.workspace / "a.txt").touch()
        answer = pawand.call("POST", "/chat", {"message": "go"})[1]
        model.check()
        stop(pawand, 5)
        until(place.gone, "no server is left")
    listed, unknown = json.loads(answer["content"])
    assert listed == "[FILE] a.txt"
    assert "mcp_broken_echo" in unknown
    [line] = [line for line in pawand.log_text().splitlines() if "MCP server" in line]
    assert "WARNING" in line
    assert "MCP server broken could not be started: it ended: no such thing" in line


@pytest.mark.parametrize("end", ["cancel", "SIGTERM"])
def test_one_that_never_greets_holds_up_no_end(
    place: Place, upstream: OpenAIServer, env: dict[str, str], end: str
) -> None:
    mute = f'\n[mcp.mute]\ncommand = "sh"\nargs = ["-c", "sleep 1000; exit", "{place.marker}/mcp-server-"]\n'
    config = place.config(f"{mute}[server]\ndrain_secs = 0.5\n", files=False)
    with harness.serve(place.workspace, place.state, env=env, config=config) as pawand:
        turns = [Stream(pawand.url, "/chat/stream", {"message": "go", "session_id": name}, 60) for name in ("s", "t")]
        for turn in turns:
            turn.read_until("start")
        until(lambda: place.nodes() and running(f"{place.marker}/mcp-server-"), "both are started")
        assert len(place.nodes()) == 1, "once for two turns"
        if end == "cancel":
            began = time.monotonic()
            for name in ("s", "t"):
                assert pawand.call("POST", f"/sessions/{name}/cancel")[0] == 200
            assert [turn.read_rest()[-1][1]["code"] for turn in turns] == ["cancelled"] * 2
            assert time.monotonic() - began < 2
        stop(pawand, 0.5 + 4)
        if end == "SIGTERM":
            assert [turn.read_rest()[-1][1]["code"] for turn in turns] == ["shutdown"] * 2
        until(place.gone, "no server is left")
    assert upstream.requests == []
    assert "Traceback" not in pawand.log_text()
