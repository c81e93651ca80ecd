"""The git tools where things are bad: hostile arguments, names and settings, and repositories that are none."""

from __future__ import annotations

import os
import shutil
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pawand.redact import Redactor
from pawand.tools import git_run
from tests.tools.conftest import SECRET, Bench, Hide, MakeBench, needs_bwrap, needs_git, needs_root, running, tree
from tests.tools.repository import IDENTITY, Repository, git

pytestmark = needs_git

READING: dict[str, dict[str, Any]] = {
    "git_status": {},
    "git_diff": {},
    "git_log": {},
    "git_blame": {"file": "a.txt"},
    "git_branch": {},
}
CHANGING: dict[str, dict[str, Any]] = {
    "git_add": {"files": ["a.txt"]},
    "git_commit": {"message": "x"},
    "git_checkout": {"target": "main"},
    "git_stash": {},
}
PATHS: list[tuple[str, dict[str, Any]]] = [
    ("git_diff", {"file": "{}"}),
    ("git_add", {"files": ["a.txt", "{}"]}),
    ("git_log", {"file": "{}"}),
    ("git_blame", {"file": "{}"}),
    ("git_checkout", {"target": "HEAD", "files": ["{}"]}),
]
STRINGS: list[tuple[str, dict[str, Any]]] = [
    *PATHS,
    ("git_diff", {"base": "{}"}),
    ("git_diff", {"base": "{}", "file": "a.txt", "staged": True}),
    ("git_blame", {"file": "a.txt", "lines": "{}"}),
    ("git_checkout", {"target": "{}"}),
    ("git_checkout", {"target": "{}", "create": True}),
    ("git_checkout", {"target": "{}", "files": ["a.txt"]}),
    ("git_stash", {"message": "{}"}),
    ("git_commit", {"message": "{}", "body": "{}"}),
]
OPTIONS = (
    "--output={outside}/made",
    "--exec=touch {outside}/made",
    "--pathspec-from-file={outside}/secret.txt",
    "--no-index",
    "--ext-diff",
    "-c",
    "-",
    "--",
    "$(touch {outside}/made)",
)


def filled(arguments: dict[str, Any], value: str) -> dict[str, Any]:
    def fill(item: Any) -> Any:
        if isinstance(item, list):
            return [fill(part) for part in item]
        return item.replace("{}", value) if isinstance(item, str) else item

    return {key: fill(item) for key, item in arguments.items()}


def ids(case: Any) -> str:
    return f"{case[0]}-{'-'.join(case[1])}"


@pytest.fixture(autouse=True)
def identity() -> Path:
    file = Path.home() / ".gitconfig"
    file.write_text(IDENTITY)
    return file


@pytest.fixture
def repo(identity: Path, shell_bench: Bench) -> Repository:
    made = Repository(shell_bench)
    made.commit("first", a_txt="one\n")
    return made


@pytest.fixture
def simple(identity: Path, bench: Bench) -> Repository:
    """Without bubblewrap, which would hide what a tool lets through."""
    made = Repository(bench)
    made.commit("first", a_txt="one\n")
    return made


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("case", STRINGS, ids=ids)
def test_no_argument_is_an_option(simple: Repository, outside: Path, case: tuple[str, dict[str, Any]]) -> None:
    tool, arguments = case
    before = tree(outside)
    for option in OPTIONS:
        simple.plant(a_txt="mine\n")
        value = option.format(outside=outside)
        outcome = simple.bench.call(tool, **filled(arguments, value))
        assert "internal error" not in outcome.text
        assert SECRET not in outcome.text
        text_was_kept = outcome.success and tool in ("git_stash", "git_commit")
        assert (simple.root / "a.txt").read_text() == ("one\n" if text_was_kept and tool == "git_stash" else "mine\n")
    assert tree(outside) == before
    assert sorted(os.listdir(simple.root)) == [".git", "a.txt"]
    assert simple.git("branch", "--format=%(refname:short)") == "main\n"
    if tool == "git_stash":
        assert simple.git("stash", "list", "--format=%gs").splitlines() == [
            f"On main: {option.format(outside=outside)}" for option in reversed(OPTIONS)
        ]


@pytest.mark.parametrize("case", PATHS, ids=ids)
def test_no_path_leads_out(simple: Repository, outside: Path, case: tuple[str, dict[str, Any]]) -> None:
    tool, arguments = case
    (simple.root / "link").symlink_to(outside)
    simple.plant(a_txt="mine\n")
    for path, word in (
        ("../outside/secret.txt", "`..`"),
        ("a/../../outside/secret.txt", "`..`"),
        ("a.txt/..", "`..`"),
        (f"{outside}/secret.txt", "outside the workspace"),
        (f"{simple.root}/../outside/secret.txt", "outside the workspace"),
        (f"{simple.root}-other", "outside the workspace"),
        ("/etc/passwd", "outside the workspace"),
        (".git/config", "git's own files"),
        ("a\0b", "NUL"),
        ("a\ud800", "no valid text"),
    ):
        assert word in simple.refused(tool, **filled(arguments, path))
    assert SECRET not in simple.bench.call(tool, **filled(arguments, "link/secret.txt")).text
    assert simple.status() == [" M a.txt", "?? link"]


def test_a_link_that_leads_out_is_added_as_a_link(simple: Repository, outside: Path) -> None:
    (simple.root / "link").symlink_to(outside / "secret.txt")
    simple.ok("git_add", files=["link"])
    assert simple.git("show", ":link") == f"{outside}/secret.txt"
    assert SECRET not in simple.bench.call("git_blame", file="link").text


@pytest.mark.slow
def test_an_odd_target_is_answered(simple: Repository) -> None:
    for target in ("../x", "a\0b", "a\udcff", "\ud800", " ", "@{-1}", ":/first", "^main", "x" * 300):
        for more in ({}, {"create": True}, {"files": ["a.txt"]}):
            assert "internal error" not in simple.bench.call("git_checkout", target=target, **more).text, target
        assert "internal error" not in simple.bench.call("git_diff", base=target).text, target
    assert simple.git("branch", "--list", "main") != ""


ODD_NAMES = (
    "with space",
    "new\nline",
    'qu"ote',
    "it's",
    "back\\slash",
    "-n",
    "--all",
    "--",
    ":(exclude)a.txt",
    ":!a.txt",
    "*",
    "[a].txt",
    "?.txt",
    "#x",
    "é🦀",
    "caf\udce9",
    " ",
    "a..b",
    "HEAD",
    "main",
    "\x1b[31m",
)


@pytest.mark.slow
def test_files_with_odd_names(simple: Repository) -> None:
    for name in ODD_NAMES:
        (simple.root / name).write_text("first\n")
    simple.plant(other_txt="not to be added\n", a_txt="not to be touched\n")
    simple.ok("git_add", files=["*"])
    assert simple.git("diff", "--cached", "--name-only", "-z") == "*\0"
    simple.ok("git_add", files=list(ODD_NAMES))
    assert set(simple.git("diff", "--cached", "--name-only", "-z").split("\0")) == {*ODD_NAMES, ""}
    simple.git("commit", "-q", "-m", "odd")
    for name in ODD_NAMES:
        (simple.root / name).write_text("second\n")
    for name in ODD_NAMES:
        diff = simple.ok("git_diff", file=name)["diff"]
        assert diff.count("diff --git") == 1, name
        assert diff.endswith("-first\n+second\n"), name
        assert simple.ok("git_blame", file=name)["blame"].endswith("second\n"), name
    assert simple.ok("git_log", file="[a].txt")["commit_count"] == 1
    assert not simple.ok("git_status")["is_clean"]
    simple.ok("git_checkout", target="HEAD", files=["*"])
    assert len(simple.git("diff", "--name-only").splitlines()) == len(ODD_NAMES)
    simple.ok("git_checkout", target="HEAD", files=list(ODD_NAMES))
    assert simple.git("diff", "--name-only") == "a.txt\n"


def test_text_that_is_no_text(simple: Repository) -> None:
    (simple.root / "a.txt").write_bytes(b"caf\xe9 \x01\n")
    (simple.root / "null").write_bytes(b"\0\1\2")
    assert "+caf\ufffd \x01\n" in simple.ok("git_diff")["diff"]
    simple.ok("git_add", all=True)
    assert "Binary files" in simple.ok("git_diff", staged=True)["diff"]
    simple.git("-c", "i18n.commitEncoding=latin1", "commit", "-q", "-m", b"caf\xe9")
    assert "café" in simple.ok("git_log")["log"]
    simple.git("config", "i18n.commitEncoding", "latin1")
    simple.plant(a_txt="x\n")
    simple.git("add", "a.txt")
    simple.ok("git_commit", message="café")
    assert simple.git("log", "-1", "--format=%s", "--encoding=UTF-8") == "café\n"


# --- repositories that are none -------------------------------------------------------------------


def everywhere(bench: Bench, word: str) -> None:
    """Every tool gives the same advice."""
    for tool, arguments in (READING | CHANGING).items():
        assert word in bench.refused(tool, **arguments), tool


def test_no_repository(shell_bench: Bench) -> None:
    everywhere(shell_bench, "the workspace is no git repository")


@pytest.mark.parametrize("file", [None, "a.txt"])
def test_a_diff_is_never_one_of_files_outside(simple: Repository, outside: Path, file: str | None) -> None:
    simple.plant(a_txt="mine\n")
    base = str(outside / "secret.txt")
    assert "bad revision" in simple.refused("git_diff", base=base, file=file)
    shutil.rmtree(simple.root / ".git")
    assert "the workspace is no git repository" in simple.bench.refused("git_diff", base=base, file=file)


def test_a_repository_above_the_workspace_is_none_of_its(shell_bench: Bench, tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "above.txt").write_text("x\n")
    (shell_bench.root / "a.txt").write_text("x\n")
    everywhere(shell_bench, "the workspace is no git repository")
    assert git(tmp_path, "diff", "--cached", "--name-only") == ""


@needs_bwrap
def test_a_worktree_whose_repository_is_elsewhere(identity: Path, caged: Bench, outside: Path) -> None:
    git(outside, "init", "--quiet")
    git(outside, "commit", "--quiet", "--allow-empty", "-m", "first")
    git(outside, "worktree", "add", "--quiet", "tree")
    shutil.copy(outside / "tree/.git", caged.root)
    everywhere(caged, "lies outside the workspace, where the sandbox does not show it")


def test_a_bare_repository(shell_bench: Bench) -> None:
    git(shell_bench.root, "init", "--quiet", "--bare")
    everywhere(shell_bench, "is a bare repository")


@needs_root
def test_a_repository_of_another_user(repo: Repository) -> None:
    for path in (repo.root, *repo.root.rglob("*")):
        os.chown(path, 65534, 65534)
    everywhere(repo.bench, "belongs to another user")


@pytest.mark.parametrize("content", ["junk\n", "gitdir: \n", "gitdir: ../outside\n"])
def test_a_broken_git_file(bench: Bench, outside: Path, content: str) -> None:
    (bench.root / ".git").write_text(content)
    for tool, arguments in (READING | CHANGING).items():
        assert "fatal: " in bench.refused(tool, **arguments)


@pytest.mark.parametrize("file", ["config", "HEAD", "index"])
def test_a_broken_repository(simple: Repository, file: str) -> None:
    (simple.root / ".git" / file).write_bytes(b"\xff\0[[")
    assert simple.refused("git_status")
    assert simple.refused("git_commit", message="x")


# --- the machine ----------------------------------------------------------------------------------


def test_nobody_s_commit(identity: Path, shell_bench: Bench) -> None:
    identity.unlink()
    nobody = Bench(shell_bench.workspace, shell_bench.sandbox)
    nobody.sandbox._identity.clear()
    repo = Repository(nobody)
    repo.plant(a_txt="one\n")
    repo.ok("git_add", all=True)
    error = repo.refused("git_commit", message="x")
    assert "git config --global user.name" in error
    repo.git("config", "user.name", "Grace Hopper")
    assert "user.email" in repo.refused("git_commit", message="x")
    repo.git("config", "user.email", "grace@example.org")
    repo.ok("git_commit", message="x")
    assert repo.git("log", "--format=%an %ce") == "Grace Hopper grace@example.org\n"


def test_the_repository_s_own_address_counts_before_the_user_s(root: Path, make_bench: MakeBench) -> None:
    git(root, "init", "--quiet", "--template=")
    git(root, "config", "user.email", "ada@work.example")
    repo = Repository(make_bench("auto"))
    repo.plant(a_txt="one\n")
    repo.ok("git_add", all=True)
    repo.ok("git_commit", message="x")
    assert (
        repo.git("log", "--format=%an %ae, %cn %ce") == "Ada Lovelace ada@work.example, Ada Lovelace ada@work.example\n"
    )


def test_a_stash_needs_no_name(identity: Path, simple: Repository) -> None:
    identity.unlink()
    simple.plant(a_txt="mine\n")
    simple.ok("git_stash")
    simple.ok("git_stash", action="pop")
    assert (simple.root / "a.txt").read_text() == "mine\n"


def test_without_git(hide: Hide, make_bench: MakeBench) -> None:
    hide("git")
    everywhere(make_bench("off"), "git is not installed")


def test_required_but_missing_sandbox_stops_git(hide: Hide, make_bench: MakeBench) -> None:
    hide("bwrap")
    everywhere(make_bench("require"), "mode is require")


def test_a_lock_stops_who_changes_and_nobody_else(simple: Repository) -> None:
    lock = simple.root / ".git" / "index.lock"
    lock.touch()
    for tool, arguments in READING.items():
        simple.ok(tool, **arguments)
    simple.plant(a_txt="mine\n")
    for tool, word in (("git_add", "index.lock"), ("git_commit", "index.lock"), ("git_stash", "index")):
        assert word in simple.refused(tool, **CHANGING[tool])
    assert lock.exists()


def test_reading_writes_nothing(simple: Repository) -> None:
    """But for `git diff`, which notes in the index that a file which was touched is the same."""
    os.utime(simple.root / "a.txt", (1, 1))
    before = tree(simple.root)
    for tool, arguments in READING.items():
        if tool != "git_diff":
            simple.ok(tool, **arguments)
    assert tree(simple.root) == before
    assert not simple.ok("git_diff")["has_changes"]
    assert {**tree(simple.root), ".git/index": before[".git/index"]} == before


def test_settings_of_the_repository_start_nothing_and_paint_nothing(simple: Repository, outside: Path) -> None:
    evil = simple.root / "evil.sh"
    evil.write_text(f"#!/bin/sh\ntouch {outside}/made\n")
    evil.chmod(0o755)
    simple.commit("second", _gitattributes="*.txt diff=evil\n")
    for key in ("diff.external", "diff.evil.command", "diff.evil.textconv", "core.fsmonitor", "core.pager", "pager.log",
                "pager.diff", "pager.status", "pager.blame", "core.editor", "gpg.program", "alias.status"):  # fmt: skip
        simple.git("config", key, str(evil))
    for key in ("color.ui", "color.diff", "color.status", "color.branch", "column.ui", "column.status"):
        simple.git("config", key, "always")
    simple.git("config", "blame.coloring", "highlightRecent")
    simple.git("config", "log.showSignature", "true")
    simple.git("config", "log.date", "relative")
    simple.git("config", "stash.showStat", "false")
    simple.plant(a_txt="mine\n", u_txt="untracked\n")
    results = [simple.ok(tool, **arguments) for tool, arguments in READING.items()]
    results += [simple.ok("git_diff", base="HEAD~1", stat=stat) for stat in (True, False)]
    results += [simple.ok("git_stash", action=action) for action in ("push", "list", "show", "pop")]
    results += [simple.ok("git_add", all=True), simple.ok("git_commit", message="x")]
    assert "\x1b" not in str(results)
    assert not (outside / "made").exists()


def test_a_partial_clone_fetches_nothing(simple: Repository, outside: Path) -> None:
    source = outside / "source"
    source.mkdir()
    git(source, "init", "--quiet")
    (source / "far.txt").write_text("far\n")
    git(source, "add", ".")
    git(source, "commit", "--quiet", "-m", "far")
    git(source, "config", "uploadpack.allowFilter", "true")
    shutil.rmtree(simple.root)
    git(outside, "clone", "--quiet", "--no-checkout", "--filter=blob:none", f"file://{source}", str(simple.root))
    assert "far.txt" not in os.listdir(simple.root)
    bench = simple.bench
    assert not bench.call("git_diff", base="HEAD").success
    assert not bench.call("git_checkout", target="main").success
    missing = simple.git("rev-list", "--objects", "--all", "--missing=print")
    assert missing.count("?") == 1


# --- too much, too long ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_huge_diff_does_not_grow_the_daemon(simple: Repository) -> None:
    (simple.root / "a.txt").write_text("0123456789abcde\n" * 2_000_000)  # 32 MB
    tracemalloc.start()
    result = simple.ok("git_diff")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result["truncated"]
    assert result["has_changes"]
    assert peak < 5_000_000


def test_a_call_that_takes_too_long_is_ended_and_leaves_no_lock(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_run, "TIMEOUT_SECS", 0.5)
    repo.hook("pre-commit", "sleep 98.765")
    repo.plant(a_txt="mine\n")
    repo.git("add", "a.txt")
    started = time.monotonic()
    error = repo.refused("git_commit", message="x")
    assert "git commit took more than 0.5 s" in error
    assert time.monotonic() - started < 5
    assert not running("sleep\x0098.765")
    assert not (repo.root / ".git" / "index.lock").exists()
    assert repo.status() == ["M  a.txt"]


def test_secrets_are_kept_out_of_results_and_errors(simple: Repository) -> None:
    secret = "sk-0123456789-secret"
    bench = Bench(simple.bench.workspace, simple.bench.sandbox, redactor=Redactor([secret]))
    simple.plant(a_txt=f"key = {secret}\n")
    assert "[redacted]" in bench.ok("git_diff")["diff"]
    simple.git("commit", "-q", "-a", "-m", f"use {secret}")
    simple.hook("pre-commit", f"echo {secret}; exit 1")
    simple.plant(a_txt="x\n")
    simple.git("add", "a.txt")
    texts = [bench.call(tool, **arguments).text for tool, arguments in (READING | CHANGING).items()]
    assert sum("[redacted]" in text for text in texts) >= 3
    assert secret not in "".join(texts)
