"""The real command as a child process: start, answer, restart, stop, refuse."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer

RUST_SESSION = """{
  "id": "3f9a1c2e",
  "model": "qwen/qwen3.5-122b-a10b",
  "created_at": "2026-04-14T12:00:00.123456789+00:00",
  "updated_at": "2026-04-14T12:05:00.000123456+00:00",
  "messages": [
    {
      "role": "user",
      "content": "Fix the test",
      "tool_calls": []
    },
    {
      "role": "assistant",
      "content": "",
      "tool_calls": [
        {
          "id": "call_1",
          "name": "read_file",
          "arguments": {
            "path": "src/lib.rs"
          }
        },
        {
          "id": "call_2",
          "name": "bash",
          "arguments": {
            "command": "cargo test"
          }
        }
      ]
    }
  ],
  "total_tokens": 57,
  "iteration_count": 0,
  "tags": ["keep"],
  "notes": "a note",
  "parent_id": null,
  "root_id": null,
  "branch_label": null,
  "branch_depth": 0,
  "labels": [],
  "unknown_field": {"deep": [1, 2.5, null]}
}"""


def test_a_session_is_continued_after_a_restart(tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]) -> None:
    upstream.script = [fake.text("one"), fake.text("two")]
    for message in ("first", "second"):
        with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
            status, answer = pawand.call("POST", "/chat", {"message": message, "session_id": "keep"})
            assert status == 200
            assert answer["session_id"] == "keep"
    assert [m["content"] for m in upstream.requests[1]["messages"][1:]] == ["first", "one", "second"]


def test_a_session_of_the_rust_program_is_listed_shown_and_continued(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    file = tmp_path / "s" / "sessions" / "3f9a1c2e.json"
    file.parent.mkdir(parents=True)
    file.write_text(RUST_SESSION)
    upstream.script = [fake.text("Done.")]
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        rows = pawand.call("GET", "/sessions")[1]
        assert [(r["id"], r["model"], r["message_count"], r["title"]) for r in rows] == [
            ("3f9a1c2e", "qwen/qwen3.5-122b-a10b", 2, "Fix the test")
        ]
        assert rows[0]["created_at"] == "2026-04-14T12:00:00.123456Z"
        shown = pawand.call("GET", "/sessions/3f9a1c2e")[1]
        assert [c["name"] for c in shown["messages"][1]["tool_calls"]] == ["read_file", "bash"]
        assert shown["messages"][0]["timestamp"] == "2026-04-14T12:05:00.000123Z"
        assert file.read_text() == RUST_SESSION
        status, answer = pawand.call("POST", "/chat", {"message": "go on", "session_id": "3f9a1c2e"})
        assert (status, answer["content"]) == (200, "Done.")
    sent = upstream.requests[0]["messages"]
    assert [m["role"] for m in sent] == ["system", "user", "assistant", "tool", "tool", "assistant", "user"]
    assert all("interrupted" in m["content"] for m in sent if m["role"] == "tool")
    before, after = json.loads(RUST_SESSION), json.loads(file.read_text())
    for key in ("tags", "notes", "unknown_field", "labels", "created_at", "branch_depth", "parent_id"):
        assert after[key] == before[key]
    assert after["messages"][:2] == before["messages"]
    assert [m["role"] for m in after["messages"]] == ["user", "assistant", "user", "assistant"]
    assert all(m["tool_calls"] == [] for m in after["messages"][2:])


def test_the_key_is_nowhere(tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]) -> None:
    key = harness.API_KEY
    upstream.script = [
        fake.calls(("bash", {"command": "env; cat /proc/*/environ /proc/*/cmdline | tr '\\0' '\\n'"})),
        fake.refusal(400, f"your key {key} is bad: Authorization: Bearer {key}"),
    ]
    with harness.serve(tmp_path / "w", tmp_path / "s", "--log-level", "debug", env=env) as pawand:
        status, answer = pawand.call("POST", "/chat", {"message": f"use {key}", "session_id": "k"})
        assert status == 500
        assert "your key [redacted] is bad" in answer["error"]
        assert key.encode() not in Path(f"/proc/{pawand.process.pid}/environ").read_bytes()
        assert key not in json.dumps(pawand.call("GET", "/sessions/k")[1])
        assert upstream.headers[0]["authorization"] == f"Bearer {key}"
    assert key not in pawand.log_text()
    for file in (tmp_path / "s").rglob("*"):
        if file.is_file():
            assert key.encode() not in file.read_bytes(), file
    result = json.loads((tmp_path / "s" / "sessions" / "k.json").read_text())["messages"][2]["tool_result"]
    assert result["success"]
    assert "PATH=" in result["content"]["stdout"]


def test_without_a_key_it_starts_degraded_and_names_the_variable(tmp_path: Path) -> None:
    with harness.serve(tmp_path / "w", tmp_path / "s", "--provider", "nvidia") as pawand:
        health = pawand.call("GET", "/health")[1]
        assert health["status"] == "degraded"
        assert "NVIDIA_API_KEY" in health["reasons"][0]
        status, answer = pawand.call("POST", "/chat", {"message": "hello"})
        assert (status, answer["code"]) == (500, "provider")
        assert "NVIDIA_API_KEY" in answer["error"]
        assert "NVIDIA_API_KEY" in pawand.log_text()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--workspace", "/nowhere"], 2, "/nowhere does not exist"),
        (["--workspace", "/"], 2, "may not be /"),
        (["--port", "99999"], 2, "--port"),
        (["--provider", "skynet"], 2, "skynet"),
        (["--config", "/nowhere.toml"], 2, "/nowhere.toml"),
        (["--host", "192.0.2.77"], 1, "192.0.2.77: it is no address of this machine, or not yet"),
        (["--log-level", "loud"], 2, "loud"),
        (["--nonsense"], 2, "--nonsense"),
    ],
)
def test_wrong_flags_exit_with_one_clear_line(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    ended = run_serve(tmp_path, *arguments)
    assert (ended.returncode, words in ended.stderr) == (code, True), ended.stderr
    assert "Traceback" not in ended.stderr


def run_serve(tmp_path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    workspace = tmp_path / "w"
    workspace.mkdir(exist_ok=True)
    environ = harness.environment(Path(os.environ["HOME"]), tmp_path / "s", **env)
    command = [str(harness.COMMAND), "serve", *arguments]
    return subprocess.run(command, env=environ, cwd=workspace, capture_output=True, text=True, timeout=30, check=False)


def test_a_port_in_use_exits_1_and_names_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = run_serve(tmp_path, "--port", str(port))
    assert ended.returncode == 1
    assert f"port {port}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_second_daemon_on_the_same_store_exits_1_and_names_the_first(tmp_path: Path, env: dict[str, str]) -> None:
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        ended = run_serve(tmp_path, "--port", "0")
    assert ended.returncode == 1
    assert f"pid {pawand.process.pid}" in ended.stderr


def test_a_second_daemon_on_the_same_state_folder_exits_1(tmp_path: Path, env: dict[str, str]) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'[sessions]\ndir = "{tmp_path}/elsewhere"\n')
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        ended = run_serve(tmp_path, "--port", "0", "--config", str(config))
        assert (tmp_path / "s" / "run" / "pawand.json").exists()
    assert ended.returncode == 1
    assert f"pid {pawand.process.pid}" in ended.stderr


@pytest.mark.parametrize("place", ["sessions", "token"])
def test_a_workspace_that_holds_the_daemons_own_files_is_refused(tmp_path: Path, place: str) -> None:
    config = tmp_path / "c.toml"
    tables = {
        "sessions": f'[sessions]\ndir = "{tmp_path}/w/in"\n',
        "token": f'[server]\ntoken_file = "{tmp_path}/w/t"\n',
    }
    config.write_text(tables[place])
    ended = run_serve(tmp_path, "--config", str(config))
    assert (ended.returncode, "choose another workspace" in ended.stderr) == (2, True)


@pytest.mark.parametrize("place", ["/etc", "{home}/.config/aegis"])
def test_a_workspace_that_holds_settings_is_refused(tmp_path: Path, place: str) -> None:
    folder = Path(place.format(home=os.environ["HOME"]))
    folder.mkdir(parents=True, exist_ok=True)
    ended = run_serve(tmp_path, "--workspace", str(folder))
    assert (ended.returncode, "choose another workspace" in ended.stderr) == (2, True)


def test_a_workspace_inside_the_state_folder_is_refused(tmp_path: Path) -> None:
    inner = tmp_path / "s" / "sessions"
    inner.mkdir(parents=True)
    ended = run_serve(tmp_path, "--workspace", str(inner))
    assert (ended.returncode, "choose another workspace" in ended.stderr) == (2, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nhost = []\n", "host"),
        ('[server]\nhost = ""\n', "host"),
        ('[server]\ncors_origins = ["localhost:5000"]\n', "cors_origins"),
        ('base_url = "http://[::1"\n', "base_url"),
        ('base_url = "http://me:secret@x/v1"\n', "base_url"),
        ('[server]\nlocal_auth = "token"\ntoken_file = "/proc/nope/token"\n', "/proc/nope/token"),
    ],
)
def test_wrong_settings_exit_2(tmp_path: Path, text: str, words: str) -> None:
    config = tmp_path / "c.toml"
    config.write_text(text)
    ended = run_serve(tmp_path, "--config", str(config), "--port", "0")
    assert (ended.returncode, words in ended.stderr) == (2, True), ended.stderr
    assert "Traceback" not in ended.stderr


def test_warnings_about_settings_reach_the_log(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "pawan.toml").write_text('modle = "x"\ntemperature = 0.5\n[server]\nport = 1\n')
    with harness.serve(tmp_path / "w", tmp_path / "s", "--log-format", "json", env=env) as pawand:
        lines = [json.loads(line) for line in pawand.log_text().splitlines()]
    warnings = [line["message"] for line in lines if line["level"] == "warning"]
    assert any("`modle`; did you mean `model`" in warning for warning in warnings)
    assert any("`server` is ignored" in warning for warning in warnings)


def test_both_loopbacks_answer(tmp_path: Path, env: dict[str, str]) -> None:
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        port = pawand.url.rpartition(":")[2]
        with socket.create_connection(("::1", int(port)), timeout=5):
            pass


def test_binding_beyond_loopback_makes_a_token_and_says_where(tmp_path: Path, env: dict[str, str]) -> None:
    with harness.serve(tmp_path / "w", tmp_path / "s", "--host", "0.0.0.0", env=env) as pawand:
        token = tmp_path / "s" / "token"
        assert token.stat().st_mode & 0o777 == 0o600
        assert str(token) in pawand.log_text()
        assert token.read_text().strip() not in pawand.log_text()
        assert pawand.call("GET", "/sessions")[0] == 200


def test_it_serves_without_standard_streams(tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]) -> None:
    ways = ("<&-", "<&- >&-", "<&- >&- 2>&-")
    upstream.script = [fake.calls(("bash", {"command": "cat; echo it works"})), fake.text("done")] * len(ways)
    for closed in ways:
        prefix = ("sh", "-c", f'exec "$@" {closed}', "sh")
        with harness.serve(tmp_path / "w", tmp_path / "s", env=env, prefix=prefix) as pawand:
            assert pawand.call("POST", "/chat", {"message": "hello", "session_id": "s"})[0] == 200
            result = pawand.call("GET", "/sessions/s")[1]["messages"][-2]["tool_result"]
            assert (result["success"], result["content"]["stdout"]) == (True, "it works\n")


def test_mdns_whose_package_is_broken_is_a_warning(tmp_path: Path, env: dict[str, str]) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "zeroconf.py").write_text("raise ImportError('no such thing')")
    path = f"{broken}:{os.environ.get('PYTHONPATH', '')}"
    with harness.serve(tmp_path / "w", tmp_path / "s", "--mdns", env={**env, "PYTHONPATH": path}) as daemon:
        harness.until(
            lambda: "mDNS is off, its package cannot be used: no such thing" in daemon.log_text(), "it is said"
        )
        assert daemon.call("GET", "/health")[0] == 200
