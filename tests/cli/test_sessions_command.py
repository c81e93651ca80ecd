"""`pawand sessions` as a user runs it: through a daemon, and where none runs."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer

Answer = subprocess.CompletedProcess[str]


@pytest.fixture
def upstream() -> Iterator[OpenAIServer]:
    with OpenAIServer(lambda _: fake.text("Hello", " you")) as server:
        yield server


class Place:
    """A state folder with the command, whether a daemon runs on it or not."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "s"
        self.sessions = self.state / "sessions"
        self.sessions.mkdir(parents=True, exist_ok=True)
        self.workspace = folder / "w"
        self.workspace.mkdir(exist_ok=True)
        self.env = harness.environment(Path(os.environ["HOME"]), self.state)

    def __call__(self, *arguments: str) -> Answer:
        command = [str(harness.COMMAND), "sessions", *arguments]
        return subprocess.run(
            command, env=self.env, cwd=self.workspace, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip

    def store(self, id: str, messages: list[dict[str, Any]] | None = None, *, hours: float = 0, **more: Any) -> None:
        """A session that was used `hours` ago."""
        time = (datetime.now(UTC) - timedelta(hours=hours)).isoformat()
        messages = messages if messages is not None else [{"role": "user", "content": f"about {id}"}]
        document = {"id": id, "model": "m", "created_at": time, "updated_at": time, "messages": messages, **more}
        (self.sessions / f"{id}.json").write_text(json.dumps(document))

    def stored(self, id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.sessions / f"{id}.json").read_bytes())
        return found

    @property
    def ids(self) -> set[str]:
        return {file.stem for file in self.sessions.glob("*.json")}


@pytest.fixture(params=["daemon", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path, env: dict[str, str]) -> Iterator[Place]:
    made = Place(tmp_path)
    if request.param == "folder":
        yield made
        assert not (made.state / "run").exists()
        return
    with harness.serve(made.workspace, made.state, env=env):
        yield made


@pytest.fixture
def alone(tmp_path: Path) -> Place:
    """Where no daemon runs."""
    return Place(tmp_path)


@pytest.fixture
def pawand(tmp_path: Path, env: dict[str, str]) -> Iterator[harness.Process]:
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as process:
        yield process


# --- list -----------------------------------------------------------------------------------------


def test_list_can_be_narrowed(place: Place) -> None:
    place.store("one", hours=3)
    place.store("two", hours=2, title="Mend the FENCE")
    place.store("three", hours=1)

    def listed(*options: str) -> list[str]:
        return [row["id"] for row in json.loads(place("list", "--json", *options).stdout)]

    assert listed() == ["three", "two", "one"]
    assert listed("--limit", "2") == ["three", "two"]
    assert listed("--limit", "0") == []
    assert listed("-q", "fence") == ["two"]
    assert listed("--query", "T", "--limit", "1") == ["three"]
    assert listed("-q", "ä&limit=1 #") == []
    assert place("list", "-q", "fence").stdout.count("two") == 1
    assert place("list", "-q", "nothing").stdout == "no such sessions\n"
    assert place("list", "--limit", "-1").returncode == 2


# --- show -----------------------------------------------------------------------------------------


def test_a_turn_that_was_cut_off_is_told(tmp_path: Path, env: dict[str, str], upstream: OpenAIServer) -> None:
    upstream.script = [fake.text(*"abcdef", pause=0.3)]
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        stream = harness.Stream(pawand.url, "/chat/stream", {"session_id": "s", "message": "go"})
        stream.read_until("token", 2)
        pawand.kill()
        stream.close()
    place = Place(tmp_path)
    shown = place("show", "s")
    assert shown.returncode == 0
    assert "a turn was cut off here; the next start of pawand puts" in shown.stderr
    assert "ab" in shown.stdout
    assert "(interrupted)" in shown.stdout
    assert len(place.stored("s")["messages"]) == 1
    assert (place.sessions / "s.journal").exists()
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env):
        assert place("show", "s").stderr == ""
    assert place("show", "s").stderr == ""
    assert len(place.stored("s")["messages"]) == 2


# --- delete ---------------------------------------------------------------------------------------


def test_delete_takes_several_and_tells_what_failed(place: Place) -> None:
    for id in ("a", "b", "c"):
        place.store(id)
    answer = place("delete", "a", "none", "../x", "b")
    assert (answer.returncode, answer.stdout) == (1, "deleted a\ndeleted b\n")
    assert answer.stderr.splitlines()[0] == "pawand: no session none"
    assert answer.stderr.splitlines()[1].startswith("pawand: bad session id")
    assert place.ids == {"c"}
    assert place("delete").returncode == 2
    answer = place("delete", "none", "c", "--json")
    assert (answer.returncode, json.loads(answer.stdout)) == (
        1,
        {"deleted": ["c"], "failed": [{"id": "none", "error": "no session none"}]},
    )


def test_a_folder_that_a_daemon_owns_unseen_is_not_changed(tmp_path: Path, pawand: harness.Process) -> None:
    """Its state file is gone, so it is not found; the lock is there still."""
    pawand.call("POST", "/sessions", {"session_id": "s"})
    known = pawand.state / "run" / "pawand.json"
    content = known.read_bytes()
    known.unlink()
    for command in (["delete", "s"], ["fork", "s"], ["prune", "--older-than", "0", "--yes"]):
        answer = pawand.cli("sessions", *command)
        assert (answer.returncode, f"running pawand (pid {pawand.process.pid})" in answer.stderr) == (1, True)
    assert pawand.cli("sessions", "show", "s").returncode == 0
    known.write_bytes(content)
    assert pawand.call("GET", "/sessions/s")[0] == 200


# --- fork -----------------------------------------------------------------------------------------


def test_fork_prints_the_new_id(place: Place) -> None:
    messages = [{"role": "user", "content": str(number), "tool_calls": []} for number in range(4)]
    place.store("s", messages, title="T", future=1)
    whole = place("fork", "s").stdout.strip()
    part = json.loads(place("fork", "s", "--message", "1", "--json").stdout)["session_id"]
    assert place.ids == {"s", whole, part}
    assert place.stored(whole)["messages"] == messages
    assert place.stored(part)["messages"] == messages[:2]
    assert (place.stored(part)["title"], place.stored(part)["future"], place.stored(part)["id"]) == ("T", 1, part)
    answer = place("fork", "s", "--message", "4")
    assert (answer.returncode, "has no message 4" in answer.stderr) == (1, True)
    assert place("fork", "none").returncode == 1
    assert place("fork", "s", "--message", "-1").returncode == 2
    assert len(place.ids) == 3


# --- export ---------------------------------------------------------------------------------------

CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": "Fix\x1b[31m it\n\n- please", "timestamp": "2026-04-14T12:00:00+00:00"},
    {
        "role": "assistant",
        "content": "I look.",
        "timestamp": "2026-04-14T12:01:00+00:00",
        "tool_calls": [
            {"id": "c1", "name": "bash", "arguments": {"command": "cat x"}},
            {"id": "c2", "name": "read_file", "arguments": "no JSON"},
        ],
    },
    {
        "role": "tool",
        "content": "```\ncode\n```\n",
        "timestamp": "2026-04-14T12:01:00+00:00",
        "tool_result": {"tool_call_id": "c1", "content": {}, "success": True},
    },
    {
        "role": "tool",
        "content": "bad",
        "timestamp": "2026-04-14T12:01:00+00:00",
        "tool_result": {"tool_call_id": "c2", "content": {}, "success": False},
    },
    {"role": "system", "content": "So far.", "timestamp": "2026-04-14T12:02:00+00:00", "replaces": 4},
    {"role": "assistant", "content": "Fix", "timestamp": "2026-04-14T12:03:00+00:00", "interrupted": True},
]
TRANSCRIPT = """\
# The test

Session `s`, m, {updated}

## User, 2026-04-14 12:00

Fix[31m it

- please

## Assistant, 2026-04-14 12:01

I look.

Calls **bash**:

```json
{{
  "command": "cat x"
}}
```

Calls **read_file**:

```json
no JSON
```

## Result of bash, 2026-04-14 12:01

````
```
code
```
````

## Result of read_file (failed), 2026-04-14 12:01

```
bad
```

## Summary, 2026-04-14 12:02

So far.

## Assistant, 2026-04-14 12:03

Fix

*(interrupted)*
"""


def test_export_for_people(place: Place, tmp_path: Path) -> None:
    place.store("s", CONVERSATION, title=" The\ntest")
    expected = TRANSCRIPT.format(updated=place.stored("s")["updated_at"][:16].replace("T", " "))
    assert place("export", "s").stdout == expected
    file = tmp_path / "out.md"
    answer = place("export", "s", "-o", str(file))
    assert (answer.returncode, answer.stdout, file.read_text()) == (0, "", expected)
    assert file.stat().st_mode & 0o777 == 0o600
    assert place("export", "none", "-o", str(tmp_path / "other.md")).returncode == 1
    assert not (tmp_path / "other.md").exists()


def test_export_overwrites_only_when_told_to(alone: Place, tmp_path: Path) -> None:
    alone.store("s")
    file = tmp_path / "out.md"
    file.write_text("precious")
    answer = alone("export", "s", "-o", str(file))
    assert (answer.returncode, file.read_text()) == (1, "precious")
    assert "is there already; --force replaces it" in answer.stderr
    assert alone("export", "s", "-o", str(file), "--force").returncode == 0
    assert "about s" in file.read_text()
    for target in (tmp_path, tmp_path / "none" / "out.md"):
        answer = alone("export", "s", "-o", str(target), "--force")
        assert (answer.returncode, "cannot be written" in answer.stderr) == (1, True)
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".tmp")) == []


def test_export_writes_into_what_is_no_file_and_follows_links(alone: Place, tmp_path: Path) -> None:
    alone.store("s")
    expected = alone("export", "s").stdout
    pipe, file, link = (tmp_path / name for name in ("pipe", "file.md", "link.md"))
    os.mkfifo(pipe)
    link.symlink_to("file.md")
    for options in ([], ["--force"]):
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        try:
            assert alone("export", "s", "-o", str(pipe), *options).returncode == 0
            assert os.read(reader, 65536).decode() == expected
        finally:
            os.close(reader)
        assert pipe.is_fifo()
    assert alone("export", "s", "-o", str(link)).returncode == 0  # to where it leads, as a shell would
    assert alone("export", "s", "-o", str(link)).returncode == 1
    file.write_text("old")
    assert alone("export", "s", "-o", str(link), "--force").returncode == 0
    assert (link.is_symlink(), file.read_text()) == (True, expected)


def test_export_to_standard_output_by_name(alone: Place, tmp_path: Path) -> None:
    alone.store("s")
    expected = alone("export", "s").stdout
    stdout = tmp_path / "stdout"
    stdout.symlink_to("/proc/self/fd/1")  # as /dev/stdout is
    for name in ("-", str(stdout)):
        assert alone("export", "s", "-o", name).stdout == expected
    assert stdout.is_symlink()


def test_export_as_it_is_stored(place: Place, tmp_path: Path) -> None:
    place.store("s", CONVERSATION, tags=["t"], future={"x": 1})
    assert json.loads(place("export", "s", "--format", "json").stdout) == place.stored("s")
    file = tmp_path / "out.json"
    place("export", "s", "--format", "json", "-o", str(file))
    assert json.loads(file.read_text()) == place.stored("s")
    file.rename(place.sessions / "again.json")
    assert json.loads(place("show", "again", "--json").stdout)["messages"][0]["content"].startswith("Fix")
    assert place("export", "../s", "--format", "json").returncode == 1
    assert place("export", "s", "--format", "yaml").returncode == 2


def test_what_is_stored_elsewhere_cannot_be_exported(pawand: harness.Process) -> None:
    pawand.call("POST", "/sessions", {"session_id": "s"})
    answer = pawand.cli("--url", pawand.url, "sessions", "export", "s", "--format", "json")
    assert (answer.returncode, "sessions show --json" in answer.stderr) == (2, True)
    assert pawand.cli("--url", pawand.url, "sessions", "export", "s").returncode == 0


# --- prune ----------------------------------------------------------------------------------------


def old_and_new(place: Place) -> None:
    for id, hours in {"new": 1, "day": 25, "week": 24 * 8, "month": 24 * 40}.items():
        place.store(id, hours=hours)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--older-than", "30"], {"new", "day", "week"}),
        (["--older-than", "30d"], {"new", "day", "week"}),
        (["--older-than", "24h"], {"new"}),
        (["--older-than", "24h", "--keep", "3"], {"new", "day", "week"}),
        (["--older-than", "0", "--keep", "2"], {"new", "day"}),
        (["--older-than", "0"], set()),
        (["--older-than", "999999"], {"new", "day", "week", "month"}),
        (["--older-than", "0", "--keep", "9"], {"new", "day", "week", "month"}),
    ],
)
def test_prune_deletes_the_old_ones(alone: Place, options: list[str], left: set[str]) -> None:
    old_and_new(alone)
    planned = json.loads(alone("prune", *options, "--dry-run", "--json").stdout)["would_delete"]
    assert alone.ids == {"new", "day", "week", "month"}
    assert set(planned) == alone.ids - left
    answer = alone("prune", *options, "--yes", "--json")
    assert answer.returncode == 0
    assert json.loads(answer.stdout) == {"deleted": planned, "failed": []}
    assert alone.ids == left


def test_prune_says_what_it_does(place: Place) -> None:
    old_and_new(place)
    planned = place("prune", "--older-than", "7d", "--dry-run")
    assert planned.stdout.endswith("2 sessions would be deleted\n")
    assert "month" in planned.stdout
    assert "day " not in planned.stdout
    refused = place("prune", "--older-than", "7d")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "2 sessions would be deleted; pass --yes" in refused.stderr
    assert len(place.ids) == 4
    assert place("prune", "--older-than", "7d", "--yes").stdout == "deleted 2 sessions\n"
    assert place.ids == {"new", "day"}
    assert place("prune", "--older-than", "7d").stdout == "deleted 0 sessions\n"  # nothing to ask about
    for wrong in (["--older-than", "x"], ["--older-than", "-1"], [], ["--older-than", "1", "--keep", "-1"]):
        assert place("prune", *wrong).returncode == 2


@contextmanager
def asked(place: Place, answer: str) -> Iterator[tuple[int, str]]:
    """(exit code, what it said) of a prune in a terminal where `answer` is typed."""
    master, slave = pty.openpty()
    command = [str(harness.COMMAND), "sessions", "prune", "--older-than", "7d"]
    child = subprocess.Popen(
        command, env=place.env, cwd=place.workspace, stdin=slave, stdout=subprocess.PIPE, stderr=slave
    )
    os.close(slave)
    try:
        seen = b""
        while b"[y/N]: " not in seen:
            seen += os.read(master, 4096)
        os.write(master, answer.encode())
        out, _ = child.communicate(timeout=30)
        yield child.returncode, (seen + out).decode()
    finally:
        child.kill()
        child.wait()
        os.close(master)


def test_prune_asks(alone: Place) -> None:
    old_and_new(alone)
    with asked(alone, "n\n") as (code, said):
        assert code == 1
        assert "Delete 2 sessions in which nothing was said since 20" in said
    assert len(alone.ids) == 4
    with asked(alone, "y\n") as (code, said):
        assert (code, said.endswith("deleted 2 sessions\n")) == (0, True)
    assert alone.ids == {"new", "day"}


def test_prune_leaves_what_is_in_use(tmp_path: Path, pawand: harness.Process, upstream: OpenAIServer) -> None:
    place = Place(tmp_path)
    upstream.script = [fake.text(*"abcdefghijklmnopqrstuvwxyz", pause=0.3)]
    pawand.call("POST", "/sessions", {"session_id": "idle"})
    stream = harness.Stream(pawand.url, "/chat/stream", {"session_id": "busy", "message": "go"})
    stream.read_until("token")
    answer = place("prune", "--older-than", "0", "--yes", "--json")
    assert json.loads(answer.stdout) == {"deleted": ["idle"], "failed": []}
    assert place.ids == {"busy"}
    assert pawand.call("GET", "/sessions/busy")[1]["active_turn"] is not None
    pawand.call("POST", "/sessions/busy/cancel")
    stream.close()


def test_prune_looks_again_before_it_deletes(tmp_path: Path, pawand: harness.Process) -> None:
    """Between the list and the answer to the question somebody goes on with a session."""
    place = Place(tmp_path)
    old_and_new(place)
    master, slave = pty.openpty()
    command = [str(harness.COMMAND), "sessions", "prune", "--older-than", "7d"]
    child = subprocess.Popen(command, env=place.env, cwd=place.workspace, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""
    while b"[y/N]: " not in seen:
        seen += os.read(master, 4096)
    assert pawand.call("POST", "/chat", {"session_id": "week", "message": "hello again"})[0] == 200
    os.write(master, b"y\n")
    assert child.wait(30) == 0
    os.close(master)
    assert place.ids == {"new", "day", "week"}
