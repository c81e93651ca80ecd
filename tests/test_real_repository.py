"""A task in a real repository: a public package with its own tests, in which one thing is broken and mended again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests import harness
from tests.facts import check_facts
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import Dialogue, OpenAIServer
from tests.harness import Stream
from tests.tools.conftest import needs_bwrap, needs_git, needs_rg
from tests.tools.repository import IDENTITY, git

pytestmark = [pytest.mark.slow, needs_bwrap, needs_git, needs_rg]

PACKAGE = "toolz==1.0.0"  # no dependencies, its tests in its source distribution, done in three seconds
PASSED = 180
TESTS = ".venv/bin/python -m pytest -q -p no:cacheprovider toolz"
BROKEN_FILE = "toolz/itertoolz.py"
GOOD, BROKEN = "    return itertools.islice(seq, 0, None, n)\n", "    return itertools.islice(seq, 1, None, n)\n"
STRANGER = ["-c", "user.name=Grace Hopper", "-c", "user.email=grace@example.org"]
OPTIONS = ["--quiet", "--disable-pip-version-check", "--no-input"]


def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution."""
    folder = tmp_path_factory.mktemp("source")
    name = PACKAGE.partition("=")[0]
    done = pip(
        "download", *OPTIONS, "--no-deps", "--no-build-isolation", "--no-binary", name, "-d", str(folder), PACKAGE
    )
    if done.returncode:
        pytest.skip(f"{PACKAGE} cannot be fetched: {done.stderr.strip()[-300:]}")
    [file] = folder.glob("*.tar.gz")
    return file


@pytest.fixture
def repository(tmp_path: Path, source: Path) -> Path:
    """Unpacked, under git, installed in an environment of its own, and then broken by somebody."""
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    root = (tmp_path / source.name.removesuffix(".tar.gz")).rename(tmp_path / "w")
    git(root, "init", "--quiet")
    (root / ".gitignore").write_text(".venv/\n*.egg-info/\n__pycache__/\n")
    git(root, "add", "--all")
    git(root, *STRANGER, "commit", "--quiet", "--message=Import the package")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=root, check=True)
    python = ["--python", str(root / ".venv/bin/python"), "install", *OPTIONS]
    for wanted in (["pytest>=9,<10", "setuptools<82"], ["--no-deps", "--no-build-isolation", "--editable", str(root)]):
        done = pip(*python, *wanted)
        assert done.returncode == 0, done.stderr
    assert run_tests(root) == f"{PASSED} passed"
    file = root / BROKEN_FILE
    text = file.read_text()
    assert text.count(GOOD) == 1
    file.write_text(text.replace(GOOD, BROKEN))
    git(root, *STRANGER, "commit", "--quiet", "--all", "--message=Tidy up")
    assert run_tests(root) == f"1 failed, {PASSED - 1} passed"
    return root


def run_tests(root: Path) -> str:
    """What the package's own tests come to, run by us."""
    command = [f"{root}/.venv/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "toolz"]
    env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=120, check=False)
    return re.sub(r" in .*", "", done.stdout.strip().splitlines()[-1])


def mend() -> fake.Conversation:
    """What a model would do, step by step by what it sees; nothing of the fault is known beforehand."""
    [tests] = yield fake.calls(("bash", {"command": TESTS, "timeout_secs": 100}), say="I run the tests.")
    assert tests["exit_code"] == 1
    [(test_file, name)] = re.findall(r"^FAILED (\S+)::test_(\w+)", tests["stdout"], re.MULTILINE)
    definition, test = yield fake.calls(
        ("grep_search", {"pattern": rf"^def {name}\(", "path": "toolz", "include": "*.py"}),
        ("grep_search", {"pattern": rf"^def test_{name}\(", "path": test_file}),
    )
    [found], [_] = definition["results"], test["results"]
    path, number, _ = found.split(":", 2)
    code, history = yield fake.calls(
        ("read_file", {"path": path, "offset": int(number) - 1, "limit": 11}),
        ("git_log", {"file": path, "oneline": True}),
    )
    assert history["log"].splitlines()[0].endswith("Tidy up")
    wrong = next(line for line in code["content"].splitlines() if "return" in line).partition("\t")[2]
    too_short = wrong.partition("(")[0]
    [refused] = yield fake.calls(("edit_file", {"path": path, "old_string": too_short, "new_string": "x"}))
    assert "add lines around it" in refused["error"]
    edit = {"path": path, "old_string": wrong, "new_string": wrong.replace("1, None", "0, None")}
    [edited] = yield fake.calls(("edit_file", edit), say="It skips the first item.")
    assert edited["success"] is True
    [tests] = yield fake.calls(("bash", {"command": TESTS, "timeout_secs": 100}))
    assert (tests["exit_code"], f"{PASSED} passed" in tests["stdout"]) == (0, True)
    status, diff = yield fake.calls(("git_status", {"short": True}), ("git_diff", {}))
    assert f"\n-{wrong}\n+{edit['new_string']}\n" in json.dumps(diff).encode().decode("unicode_escape")
    assert f" M {path}" in json.dumps(status)
    [staged] = yield fake.calls(("git_add", {"files": [path]}))
    assert staged["success"] is True
    message = {"message": f"Let {name} begin with the first item", "body": f"{test_file} found it."}
    [made] = yield fake.calls(("git_commit", message))
    [log] = yield fake.calls(("git_log", {"count": 1}))
    assert made["commit_hash"] in log["log"]
    yield fake.text(f"Mended `{name}` in {path}:{number}; ", f"all {PASSED} tests pass. Commit {made['commit_hash']}.")


CALLS = [
    ["bash"],
    ["grep_search", "grep_search"],
    ["read_file", "git_log"],
    ["edit_file"],
    ["edit_file"],
    ["bash"],
    ["git_status", "git_diff"],
    ["git_add"],
    ["git_commit"],
    ["git_log"],
]
"""Of each iteration."""


def test_a_failing_test_is_found_mended_and_committed(
    tmp_path: Path, repository: Path, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    home, state = Path(os.environ["HOME"]), tmp_path / "s"
    (home / ".gitconfig").write_text(IDENTITY)
    (tmp_path / "beside.txt").write_text("untouched")
    files = {path: path.read_bytes() for path in untouchable(tmp_path, home)}
    upstream.script = model = Dialogue(mend())
    with harness.serve(repository, state, env=env) as pawand:
        assert pawand.call("GET", "/health")[1]["sandbox"] == "bwrap"
        turn = Stream(pawand.url, "/chat/stream", {"message": "Find out why a test fails.", "session_id": "s"}, 120)
        frames = (turn.read_rest(), turn.frames)[1]
        model.check()
        shown = pawand.call("GET", "/sessions/s")[1]
    check_events(frames)
    done = frames[-1][2]
    assert (done["iterations"], done["tool_calls"], done["finish_reason"]) == (11, 13, "stop")
    commit = check_repository(repository)
    assert done["content"] == f"Mended `take_nth` in {BROKEN_FILE}:360; all {PASSED} tests pass. Commit {commit}."
    check_session(state, shown)
    assert {path: path.read_bytes() for path in untouchable(tmp_path, home)} == files
    log = pawand.log_text()
    assert "turn done session=s" in log
    assert "Traceback" not in log
    assert sorted(path.name for path in (state / "sessions").iterdir() if path.suffix) == ["s.json"], (
        "no journal is left"
    )


def untouchable(*folders: Path) -> list[Path]:
    """All files but those of the workspace and the state."""
    ours = ("w", "s")
    return [
        path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in ours
    ]


def check_events(frames: list[harness.Frame]) -> None:
    """Each call begins, may show output, and is complete; nothing is there twice or out of order."""
    numbers = [int(number) for _, number in (identity.rsplit("-", 1) for identity, _, _ in frames)]
    assert numbers == list(range(numbers[0], numbers[0] + len(frames)))
    names = [name for _, name, _ in frames]
    assert (names[0], names[-1]) == ("start", "done")
    assert set(names) == {"start", "token", "tool_start", "tool_output", "tool_complete", "done"}
    started: list[list[str]] = [[] for _ in CALLS]
    open_calls: set[str] = set()
    failed = []
    for _, name, data in frames:
        if name == "tool_start":
            started[data["iteration"] - 1].append(data["name"])
            open_calls.add(data["id"])
        elif name == "tool_output":
            assert data["id"] in open_calls
        elif name == "tool_complete":
            open_calls.remove(data["id"])
            if not data["success"]:
                failed.append(data["name"])
        elif name == "token":
            assert not open_calls
    assert started == CALLS
    assert not open_calls
    assert failed == ["bash", "edit_file"]
    output = "".join(data["content"] for _, name, data in frames if name == "tool_output")
    assert "test_take_nth" in output


def check_repository(root: Path) -> str:
    """One commit more, in the user's name, that takes the fault back and nothing else; returns its hash."""
    head = git(root, "rev-parse", "HEAD").strip()
    assert git(root, "log", "--format=%an <%ae> %s").splitlines() == [
        "Ada Lovelace <ada@example.org> Let take_nth begin with the first item",
        "Grace Hopper <grace@example.org> Tidy up",
        "Grace Hopper <grace@example.org> Import the package",
    ]
    assert git(root, "log", "-1", "--format=%cn <%ce>") == "Ada Lovelace <ada@example.org>\n"
    assert git(root, "show", "--format=", "--name-status", "HEAD") == f"M\t{BROKEN_FILE}\n"
    assert git(root, "diff", "HEAD~2", "HEAD") == ""
    assert git(root, "status", "--porcelain") == ""
    git(root, "fsck", "--strict")
    assert run_tests(root) == f"{PASSED} passed"
    return head


def check_session(state: Path, shown: dict[str, object]) -> None:
    stored = json.loads((state / "sessions" / "s.json").read_bytes())
    check_facts(stored)
    messages = stored["messages"]
    expected = ["user"]
    for calls in CALLS:
        expected += ["assistant", *["tool"] * len(calls)]
    assert [m["role"] for m in messages] == [*expected, "assistant"]
    wanted = [call["id"] for m in messages for call in m["tool_calls"]]
    assert [m["tool_result"]["tool_call_id"] for m in messages if m["role"] == "tool"] == wanted
    seen = shown["messages"]
    assert isinstance(seen, list)
    assert [(m["role"], m["content"]) for m in seen] == [(m["role"], m["content"]) for m in messages]
