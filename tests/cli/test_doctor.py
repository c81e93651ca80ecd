"""`pawand doctor` names what is wrong, and what to do; it changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests import harness
from tests.cli.background import Shell, shell
from tests.disk import SmallDisk
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer

KEYS = ("OPENAI_API_URL", "OPENAI_API_KEY", "PAWAN_MODEL", "PAWAN_PROVIDER")


@pytest.fixture
def sh(tmp_path: Path, env: dict[str, str]) -> Iterator[Shell]:
    with shell(tmp_path, env) as made:
        yield made


def examined(sh: Shell) -> tuple[int, dict[str, list[tuple[str, str]]]]:
    """The exit code, and (state, text with advice) by check."""
    done = sh.run("doctor", "--json")
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    rows: dict[str, list[tuple[str, str]]] = {}
    for row in answer["checks"]:
        assert row["text"]
        rows.setdefault(row["check"], []).append((row["state"], f"{row['text']} → {row['advice']}"))
    assert answer["ok"] == (done.returncode == 0)
    return done.returncode, rows


def faults(sh: Shell) -> dict[str, str]:
    """The only fault of each check, where there are some."""
    code, rows = examined(sh)
    found = {check: [text for state, text in of if state == "fault"] for check, of in rows.items()}
    assert code == (1 if any(found.values()) else 0)
    return {check: "; ".join(texts) for check, texts in found.items() if texts}


def everything(folder: Path) -> dict[str, Any]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_mode) for path in folder.rglob("*")}


def test_all_is_well(sh: Shell, tmp_path: Path, upstream: OpenAIServer) -> None:
    home = Path(os.environ["HOME"])
    before = everything(tmp_path), everything(home)
    code, rows = examined(sh)
    assert code == 0
    assert rows["provider"] == [("ok", f"OpenAI answers at {upstream.url}, model {harness.MODEL} → ")]
    assert upstream.headers[-1]["authorization"] == f"Bearer {harness.API_KEY}"
    assert rows["daemon"] == [("note", "none runs → `pawand start` starts one")]
    assert [rows[check][0][0] for check in ("settings", "workspace", "store", "port", "token", "mdns", "peers")] == [
        "ok"
    ] * 7
    assert (everything(tmp_path), everything(home)) == before
    shown = sh.ok("doctor")
    assert f"✓ provider   OpenAI answers at {upstream.url}" in shown
    assert "! daemon     none runs\n             → `pawand start` starts one\n" in shown


def test_root_is_a_note(sh: Shell) -> None:
    rows = examined(sh)[1]
    if os.geteuid() == 0:
        assert [state for state, _ in rows["user"]] == ["note"]
        assert "this is root" in rows["user"][0][1]
    else:
        assert "user" not in rows


# --- five broken set-ups, and more ----------------------------------------------------------------


def test_no_key(sh: Shell) -> None:
    for name in KEYS:
        del sh.env[name]
    sh.env["PAWAN_PROVIDER"] = "nvidia"
    found = faults(sh)
    assert list(found) == ["provider"]
    assert "no API key for provider nvidia: set NVIDIA_API_KEY in the environment" in found["provider"]
    shown = sh.run("doctor")
    assert (shown.returncode, "✗ provider   no API key for provider nvidia" in shown.stdout) == (1, True)


def test_a_provider_that_cannot_be_reached(sh: Shell) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
        sh.env["OPENAI_API_URL"] = url
        found = faults(sh)
    assert list(found) == ["provider"]
    assert found["provider"].startswith(f"OpenAI cannot be reached at {url}: Connection refused → is the address")


@pytest.mark.slow
def test_a_provider_that_does_not_answer(sh: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        sh.env["OPENAI_API_URL"] = f"http://127.0.0.1:{mute.getsockname()[1]}/v1"
        assert "timed out" in faults(sh)["provider"]


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [
        (401, "fault", "the key is refused → set another key"),
        (403, "fault", "the key is refused"),
        (404, "note", "it has no list of models, or the address is wrong → check `base_url`"),
        (503, "fault", "OpenAI answers 503 at"),
        (302, "fault", "OpenAI answers 302 at"),
    ],
)
def test_a_provider_that_refuses(sh: Shell, upstream: OpenAIServer, status: int, state: str, words: str) -> None:
    upstream.models = fake.refusal(status, "no", Location=f"{upstream.url}/elsewhere")
    [row] = examined(sh)[1]["provider"]
    assert row[0] == state
    assert words in row[1]
    assert len(upstream.headers) == 1  # the key goes nowhere else
    assert harness.API_KEY not in sh.run("doctor").stdout


@pytest.mark.parametrize("body", [b'{"data":[{"id":"other"}]}', b"[" * 100_000, b'{"data":7}', b"<html>"])
def test_a_model_that_is_not_listed_is_a_note(sh: Shell, upstream: OpenAIServer, body: bytes) -> None:
    upstream.models = fake.Reply([body], content_type="application/json")
    assert [state for state, _ in examined(sh)[1]["provider"]] == ["note"]


def test_what_is_no_http(sh: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        sh.env["OPENAI_API_URL"] = f"http://127.0.0.1:{other.getsockname()[1]}/v1"
        assert "cannot be reached" in faults(sh)["provider"]
        thread.join(10)


def test_a_store_that_is_a_file(sh: Shell) -> None:
    sh.state.mkdir()
    (sh.state / "sessions").write_text("no folder")
    found = faults(sh)
    assert list(found) == ["store"]
    assert found["store"].startswith(f"{sh.state}/sessions is no folder, so there can be no {sh.state}/sessions → mend")


def test_a_store_on_a_disk_that_is_read_only_or_full(sh: Shell, small_disk: SmallDisk) -> None:
    sh.env["PAWAND_STATE_DIR"] = str(small_disk.path / "deep" / "state")
    rows = examined(sh)[1]
    assert ("note", f"the disk of {small_disk.path} has 0 MiB left → make room") in rows["store"]
    small_disk.fill()
    assert f"the disk of {small_disk.path} is full" in faults(sh)["store"]
    small_disk.remount("ro")
    assert f"{small_disk.path} is not writable: it is read-only" in faults(sh)["store"]


def test_a_port_that_another_program_has(sh: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        sh.env["PAWAN_API_PORT"] = port = str(other.getsockname()[1])
        found = faults(sh)
    name = Path("/proc/self/comm").read_text().strip()
    assert list(found) == ["port"]
    assert f"port {port} on 127.0.0.1 is in use by another program ({name}, pid {os.getpid()})" in found["port"]
    assert "choose another with --port" in found["port"]


def test_a_sandbox_that_is_required_and_missing(sh: Shell, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "env"):
        (programs / name).symlink_to(str(shutil.which(name)))
    sh.env["PATH"] = str(programs)
    rows = examined(sh)[1]
    assert rows["sandbox"][0][0] == "note"
    assert "commands run without a sandbox: bubblewrap is not installed" in rows["sandbox"][0][1]
    assert [(state, text.split(":")[0]) for state, text in rows["programs"]] == [
        ("fault", "bash is not installed"),
        ("note", "git is not installed"),
        ("note", "rg is not installed"),
    ]
    sh.env["PAWAND_CONFIG"] = str(tmp_path / "c.toml")
    (tmp_path / "c.toml").write_text('[sandbox]\nmode = "require"\n')
    assert "[sandbox] mode is require, but bubblewrap is not installed" in faults(sh)["sandbox"]


@pytest.mark.parametrize(
    ("text", "words"), [("temperature = 'hot'", "`temperature` is 'hot'"), ("x = ", "not valid TOML")]
)
def test_a_wrong_file_of_settings(sh: Shell, text: str, words: str) -> None:
    file = Path(os.environ["HOME"]) / ".config" / "pawan" / "pawan.toml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    found = faults(sh)
    assert list(found) == ["settings"]
    assert found["settings"].startswith(f"{file}: {words}")


def test_a_slip_in_settings_is_a_note(sh: Shell) -> None:
    (sh.workspace / "pawan.toml").write_text("modle = 'x'\n")
    code, rows = examined(sh)
    assert code == 0
    [row] = rows["settings"]
    assert (row[0], "unknown setting `modle`; did you mean `model`?" in row[1]) == ("note", True)


def test_a_folder_that_is_no_workspace(sh: Shell) -> None:
    sh.workspace = Path(os.environ["HOME"])
    found = faults(sh)
    assert list(found) == ["workspace"]  # all the rest was looked at
    assert "the workspace may not be" in found["workspace"]


def test_a_daemon_that_others_can_reach(sh: Shell, tmp_path: Path) -> None:
    sh.env["PAWAND_CONFIG"] = str(tmp_path / "c.toml")
    (tmp_path / "c.toml").write_text('[server]\nhost = "0.0.0.0"\n')
    assert examined(sh)[1]["token"] == [("note", f"there is none yet: the start makes {sh.state}/token → ")]
    assert not (sh.state / "token").exists()
    sh.state.mkdir()
    token = sh.state / "token"
    token.write_text("short")
    assert "has 5 characters; at least 16 are needed" in faults(sh)["token"]
    token.write_text("long-enough-for-a-token")
    token.chmod(0o644)
    assert examined(sh)[1]["token"] == [
        ("note", f"the token file {token} is readable by others; run: chmod 600 {token} → ")
    ]
    token.chmod(0o600)
    assert examined(sh)[1]["token"] == [("ok", f"{token} is good → ")]


def test_mdns_without_a_network_is_a_note(sh: Shell, tmp_path: Path) -> None:
    sh.env["PAWAND_CONFIG"] = str(tmp_path / "c.toml")
    (tmp_path / "c.toml").write_text("[discovery]\nmdns = true\n")
    [row] = examined(sh)[1]["mdns"]
    assert (row[0], "listens on 127.0.0.1, ::1 only" in row[1]) == ("note", True)


def test_a_broken_aegis_file_is_a_note(sh: Shell) -> None:
    file = Path(os.environ["HOME"]) / ".config" / "aegis" / "aegis-net.toml"
    file.parent.mkdir(parents=True)
    file.write_text("[peers.a]\nip = '10.0.0.1'\n")
    assert examined(sh)[1]["peers"] == [("ok", f"1 in {file} → ")]
    file.write_text("[peers")
    [row] = examined(sh)[1]["peers"]
    assert (row[0], f"no peers from the Aegis file: {file}: not valid TOML" in row[1]) == ("note", True)


# --- beside a running daemon ----------------------------------------------------------------------


def test_the_running_daemon_is_looked_at_with_its_options(sh: Shell, tmp_path: Path) -> None:
    known = sh.json("start", "--model", "mine")
    (sh.state / "tmp" / "in-use").mkdir()
    sh.workspace = Path(os.environ["HOME"])  # where none could be started
    code, rows = examined(sh)
    assert code == 0
    assert rows["daemon"] == [("ok", f"pid {known['pid']} answers at {known['url']} → ")]
    assert rows["port"] == [("ok", f"the daemon has its own: {known['url']} → ")]
    assert "does not list the model mine" in rows["provider"][0][1]
    assert (sh.state / "tmp" / "in-use").is_dir()
    sh.env.pop("OPENAI_API_KEY")
    sh.env.pop("OPENAI_API_URL")
    [row] = examined(sh)[1]["provider"]
    assert (row[0], "this shell has no key" in row[1]) == ("note", True)


def test_what_the_daemon_lacks_is_told(sh: Shell) -> None:
    for name in KEYS:
        del sh.env[name]
    sh.ok("start", "--provider", "nvidia")
    found = faults(sh)
    assert sorted(found) == ["daemon", "provider"]
    assert "NVIDIA_API_KEY" in found["daemon"]


def test_a_daemon_that_does_not_answer(sh: Shell) -> None:
    class Mute(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    sh.ok("start")
    known = sh.known()
    assert known is not None
    with ThreadingHTTPServer(("127.0.0.1", 0), Mute) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        (sh.state / "run" / "pawand.json").write_text(json.dumps({**known, "url": url}))
        found = faults(sh)
        server.shutdown()
    assert found["daemon"].startswith(f"pid {known['pid']} does not answer at {url} → `pawand logs`")
