"""A daemon in a process of its own whose disk is full, read-only, somebody else's, or full of damaged files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests import harness
from tests.disk import SmallDisk
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.harness import Stream, until

GOOD = {
    "id": "s", "model": "m", "created_at": "2026-04-14T12:00:00.000000+00:00",
    "updated_at": "2026-04-14T12:00:00.000000+00:00",
    "messages": [{"role": "user", "content": "hello", "tool_calls": []}], "total_tokens": 0, "iteration_count": 0,
}  # fmt: skip


def on(disk: SmallDisk) -> str:
    return f'[sessions]\ndir = "{disk.path}/sessions"\n'


def messages(disk: SmallDisk, session: str) -> list[str]:
    document = json.loads((disk.path / "sessions" / f"{session}.json").read_bytes())
    return [message["content"] for message in document["messages"]]


def test_a_full_disk_is_told_and_nothing_is_lost(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str], small_disk: SmallDisk
) -> None:
    upstream.script = lambda _: fake.text("ok")
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config=on(small_disk)) as pawand:
        assert pawand.call("POST", "/chat", {"message": "one", "session_id": "s"})[0] == 200
        small_disk.fill()
        health = pawand.call("GET", "/health")
        assert (health[0], health[1]["status"]) == (200, "degraded")
        assert "is full" in health[1]["reasons"][0]
        status, answer = pawand.call("POST", "/chat", {"message": "two", "session_id": "s"})
        assert (status, answer["code"]) == (500, "storage")
        assert "No space left" in answer["error"]
        status, answer = pawand.call("POST", "/chat/stream", {"message": "two", "session_id": "s"})
        assert (status, answer["code"]) == (500, "storage")
        assert len(upstream.requests) == 1  # nothing goes upstream that is not on disk
        assert messages(small_disk, "s") == ["one", "ok"]
        assert [row["message_count"] for row in pawand.call("GET", "/sessions")[1]] == [2]
        small_disk.free()
        assert pawand.call("GET", "/health")[1]["status"] == "ok"
        assert pawand.call("POST", "/chat", {"message": "three", "session_id": "s"})[0] == 200
    assert messages(small_disk, "s") == ["one", "ok", "three", "ok"]
    assert "Traceback" not in pawand.log_text()


def test_a_disk_that_fills_up_in_a_turn_ends_it_with_what_was_shown(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str], small_disk: SmallDisk
) -> None:
    upstream.script = [fake.text(*["word " * 20] * 400, pause=0.005), fake.text("on we go")]
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config=on(small_disk)) as pawand:
        stream = Stream(pawand.url, "/chat/stream", {"message": "one", "session_id": "s"})
        stream.read_until("token", 10)
        small_disk.fill()
        events = stream.read_rest()
        assert (events[-1][0], events[-1][1]["code"]) == ("error", "storage")
        shown = harness.tokens(events)
        assert messages(small_disk, "s") == ["one"]  # the last save failed, the file is whole ...
        seen = pawand.call("GET", "/sessions/s")[1]["messages"]
        assert seen[1]["content"].startswith(shown)  # ... and the rest is read from the journal
        assert seen[1]["interrupted"] is True
        small_disk.free()
        assert pawand.call("POST", "/chat", {"message": "two", "session_id": "s"})[1]["content"] == "on we go"
    assert messages(small_disk, "s") == ["one", seen[1]["content"], "two", "on we go"]
    assert not list((small_disk.path / "sessions").glob("*.journal"))
    assert "Traceback" not in pawand.log_text()


@pytest.mark.slow
def test_a_full_disk_at_the_start_keeps_the_journal_for_later(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str], small_disk: SmallDisk
) -> None:
    upstream.script = [fake.text(*"abcdef", pause=0.2)]
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config=on(small_disk)) as pawand:
        stream = Stream(pawand.url, "/chat/stream", {"message": "one", "session_id": "s"})
        stream.read_until("token", 2)
        pawand.kill()
        stream.read_rest()
    small_disk.fill()
    for _ in range(2):
        with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config=on(small_disk)) as pawand:
            assert "is not recovered yet" in pawand.log_text()
            assert pawand.call("GET", "/sessions/s")[1]["messages"][1]["content"].startswith("ab")
    small_disk.free()
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config=on(small_disk)):
        assert messages(small_disk, "s")[1].startswith("ab")


def test_a_read_only_store_is_told_and_recovers(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str], small_disk: SmallDisk
) -> None:
    upstream.script = lambda _: fake.text("ok")
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config=on(small_disk)) as pawand:
        pawand.call("POST", "/chat", {"message": "one", "session_id": "s"})
        small_disk.remount("ro")
        assert pawand.call("GET", "/health")[1]["status"] == "degraded"
        assert len(pawand.call("GET", "/sessions/s")[1]["messages"]) == 2
        for method, path, body in (
            ("POST", "/chat", {"message": "two", "session_id": "s"}),
            ("POST", "/chat", {"message": "two"}),
            ("POST", "/sessions/s/messages", {"message": "two"}),
            ("POST", "/sessions", {}),
            ("DELETE", "/sessions/s", None),
        ):
            status, answer = pawand.call(method, path, body)
            assert (status, answer["code"]) == (500, "storage"), path
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config=on(small_disk)) as pawand:
        assert pawand.call("GET", "/health")[1]["status"] == "degraded"
        assert len(pawand.call("GET", "/sessions/s")[1]["messages"]) == 2
        small_disk.remount("rw")
        assert pawand.call("GET", "/health")[1]["status"] == "ok"
        assert pawand.call("POST", "/chat", {"message": "two", "session_id": "s"})[0] == 200
    assert "Traceback" not in pawand.log_text()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["full", "ro"])
def test_a_state_folder_that_cannot_be_written_at_the_start(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str], small_disk: SmallDisk, how: str
) -> None:
    upstream.script = lambda _: fake.text("ok")
    state = small_disk.path / "state"
    port = free_port()
    with harness.serve(tmp_path / "w", state, env=env) as pawand:
        pawand.call("POST", "/chat", {"message": "one", "session_id": "s"})
    log = tmp_path / "log"
    if how == "full":
        small_disk.fill()
    else:
        small_disk.remount("ro")
    command = [str(harness.COMMAND), "serve", "--workspace", str(tmp_path / "w"), "--port", str(port)]
    environ = harness.environment(Path(os.environ["HOME"]), state, **env)
    with log.open("wb") as output, subprocess.Popen(command, env=environ, stderr=output) as child:
        try:
            pawand = harness.Process(child, f"http://127.0.0.1:{port}", state, tmp_path / "w", log, environ)
            until(lambda: "pawand 0." in log.read_text() or child.poll() is not None, "it started")
            assert "the state file" in log.read_text()
            assert pawand.call("GET", "/health")[1]["status"] == "degraded"
            assert len(pawand.call("GET", "/sessions/s")[1]["messages"]) == 2
            assert pawand.call("POST", "/chat", {"message": "two", "session_id": "s"})[1]["code"] == "storage"
            if how == "full":
                small_disk.free()
            else:
                small_disk.remount("rw")
            upstream.script = [fake.calls(("bash", {"command": "echo hi > /tmp/x && cat /tmp/x"})), fake.text("ok")]
            assert pawand.call("POST", "/chat", {"message": "two", "session_id": "s"})[0] == 200
            assert pawand.stored("s")[-2]["tool_result"]["content"]["stdout"] == "hi\n"
            until((state / "run" / "pawand.json").exists, "the state file")
        finally:
            child.terminate()
        assert child.wait(10) == 0
    assert "Traceback" not in log.read_text()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


# --- damaged files --------------------------------------------------------------------------------

DAMAGE = {
    "empty": b"",
    "cut": json.dumps(GOOD).encode()[:-20],
    "not-utf-8": json.dumps(GOOD).encode().replace(b"hello", b"h\xff"),
    "a-list": b"[]",
    "wrong-types": json.dumps({**GOOD, "messages": 3}).encode(),
    "no-messages": json.dumps({"id": "x"}).encode(),
    "nul-bytes": b"\0" * 512,
    "deep": b"[" * 100_000,
}


def test_damaged_files_of_every_kind(tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]) -> None:
    upstream.script = lambda _: fake.text("ok")
    sessions = tmp_path / "s" / "sessions"
    sessions.mkdir(parents=True)
    (sessions / "good.json").write_text(json.dumps(GOOD))
    old = time.time() - 60
    for name, data in DAMAGE.items():
        (sessions / f"{name}.json").write_bytes(data)
    (sessions / "folder.json").mkdir()
    (sessions / "link.json").symlink_to(sessions / "good.json")
    os.mkfifo(sessions / "fifo.json")
    (sessions / "no session id!.json").write_text(json.dumps(GOOD))
    names = [*DAMAGE, "folder", "link", "fifo"]
    for name in names:
        os.utime(sessions / f"{name}.json", (old, old), follow_symlinks=False)
    before = {file.name: file.lstat().st_mtime_ns for file in sessions.iterdir()}
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        assert [row["id"] for row in pawand.call("GET", "/sessions")[1]] == ["good"]
        for name in names:
            status, answer = pawand.call("GET", f"/sessions/{name}")
            assert (status, answer["code"]) == (404, "not_found")
            assert "cannot be read" in answer["error"]
            assert pawand.call("POST", f"/sessions/{name}/messages", {"message": "x"})[0] == 404
        # reads move nothing
        assert {f.name: f.lstat().st_mtime_ns for f in sessions.iterdir() if f.name != ".lock"} == before
        for name in names:
            assert pawand.call("POST", "/chat", {"message": "new", "session_id": name})[0] == 200, name
            [aside] = sessions.glob(f"{name}.json.corrupt-*")
            if name in DAMAGE:
                assert aside.read_bytes() == DAMAGE[name]
        assert json.loads((sessions / "good.json").read_text()) == GOOD
        log = pawand.log_text()
        assert "Traceback" not in log
        assert log.count("no session id!") == 1


def test_a_damaged_file_that_is_fresh_is_left_alone(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    upstream.script = lambda _: fake.text("ok")
    sessions = tmp_path / "s" / "sessions"
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        file = sessions / "fresh.json"
        file.write_text('{"id": "fr')
        status, answer = pawand.call("POST", "/chat", {"message": "x", "session_id": "fresh"})
        assert (status, answer["code"]) == (503, "unavailable")
        assert file.read_text() == '{"id": "fr'
        os.utime(file, (time.time() - 6, time.time() - 6))
        assert pawand.call("POST", "/chat", {"message": "x", "session_id": "fresh"})[0] == 200


@pytest.mark.slow
def test_a_file_that_another_program_is_writing_is_never_moved(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    """The Rust program truncates the file and writes it in pieces; meanwhile we read, list and send messages to it."""
    upstream.script = lambda _: fake.text("ok")
    sessions = tmp_path / "s" / "sessions"
    stop = threading.Event()
    document = json.dumps({**GOOD, "messages": GOOD["messages"] * 200}).encode()  # type: ignore[operator]

    def write_slowly() -> None:
        while not stop.is_set():
            with (sessions / "s.json").open("wb", buffering=0) as file:
                for at in range(0, len(document), 1000):
                    file.write(document[at : at + 1000])
                    time.sleep(0.002)
            time.sleep(0.02)

    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        writer = threading.Thread(target=write_slowly)
        writer.start()
        try:
            codes = set()
            for _ in range(25):
                codes.add(pawand.call("GET", "/sessions/s")[0])
                codes.add(pawand.call("GET", "/sessions")[0])
                codes.add(pawand.call("POST", "/chat", {"message": "x", "session_id": "s"})[0])
        finally:
            stop.set()
            writer.join()
        assert codes <= {200, 404, 503}
        assert not list(sessions.glob("*corrupt*"))
        assert pawand.call("GET", "/sessions/s")[0] == 200
        assert "Traceback" not in pawand.log_text()


def test_a_session_that_another_program_changed_is_read_anew(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    upstream.script = lambda _: fake.text("ok")
    file = tmp_path / "s" / "sessions" / "s.json"
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        pawand.call("POST", "/chat", {"message": "one", "session_id": "s"})
        document = json.loads(file.read_text())
        document["messages"].append({"role": "user", "content": "from elsewhere", "tool_calls": []})
        document["messages"].append({"role": "assistant", "content": "answered there", "tool_calls": []})
        file.write_text(json.dumps(document))
        pawand.call("POST", "/chat", {"message": "two", "session_id": "s"})
    sent = [m["content"] for m in upstream.requests[1]["messages"][1:]]
    assert sent == ["one", "ok", "from elsewhere", "answered there", "two"]


def test_a_deleted_session_leaves_nothing(tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]) -> None:
    upstream.script = [fake.text(*"abcdef", pause=0.2)]
    sessions = tmp_path / "s" / "sessions"
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        stream = Stream(pawand.url, "/chat/stream", {"message": "one", "session_id": "s"})
        stream.read_until("token")
        until((sessions / "s.journal").exists, "the journal")
        assert pawand.call("DELETE", "/sessions/s")[0] == 204
        assert stream.read_rest()[-1][1]["code"] == "cancelled"
        assert [file.name for file in sessions.iterdir()] == [".lock"]
