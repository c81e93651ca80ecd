"""The git tools as they are meant to be used: what they answer, and what git itself says afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pawand.errors import ToolError
from tests.tools.conftest import Bench, MakeBench, needs_git
from tests.tools.repository import IDENTITY, Repository

pytestmark = needs_git

FILES = {"a_txt": "one\ntwo\nthree\n", "b_txt": "bee\n"}


@pytest.fixture(autouse=True)
def _identity() -> None:
    (Path.home() / ".gitconfig").write_text(IDENTITY)


@pytest.fixture
def fresh(_identity: None, shell_bench: Bench) -> Repository:
    """Without a commit."""
    return Repository(shell_bench)


@pytest.fixture
def repo(fresh: Repository) -> Repository:
    fresh.commit("first", **FILES)
    return fresh


@pytest.fixture
def simple(_identity: None, make_bench: MakeBench) -> Repository:
    """For what has nothing to do with how git is started: the faster way."""
    made = Repository(make_bench("auto"))
    made.commit("first", **FILES)
    return made


# --- git_status -----------------------------------------------------------------------------------


def test_the_status_of_a_clean_repository(repo: Repository) -> None:
    assert repo.ok("git_status") == {
        "status": "On branch main\nnothing to commit, working tree clean\n",
        "branch": "main",
        "is_clean": True,
        "success": True,
    }


def test_the_status_tells_staged_changed_and_untracked_files(repo: Repository) -> None:
    repo.plant(a_txt="changed\n", c_txt="new\n", d_txt="new\n")
    repo.git("add", "c.txt")
    short = repo.ok("git_status", short=True)
    assert short["status"].splitlines() == ["## main", " M a.txt", "A  c.txt", "?? d.txt"]
    assert not short["is_clean"]
    long = repo.ok("git_status")
    assert "new file:   c.txt" in long["status"]
    assert "modified:   a.txt" in long["status"]
    assert "d.txt" in long["status"]
    assert (long["branch"], long["is_clean"]) == ("main", False)


@pytest.mark.parametrize(
    ("steps", "branch"),
    [
        (["checkout -q -b feature/x.y"], "feature/x.y"),
        (["checkout -q --detach"], None),
        (["branch up", "branch -q --set-upstream-to=up main"], "main"),
        (["branch up", "branch -q --set-upstream-to=up main", "branch -q -D up"], "main"),
        (["tag main"], "main"),
        (["checkout -q --orphan bare"], "bare"),
    ],
)
def test_the_branch_is_told(simple: Repository, steps: list[str], branch: str | None) -> None:
    for step in steps:
        simple.git(*step.split())
    assert simple.ok("git_status", short=True)["branch"] == branch
    assert simple.ok("git_branch")["current"] == branch


def test_a_repository_without_a_commit(fresh: Repository) -> None:
    status = fresh.ok("git_status", short=True)
    assert (status["branch"], status["is_clean"]) == ("main", True)
    assert fresh.ok("git_branch") == {"current": "main", "branches": [], "count": 0, "success": True}
    assert not fresh.ok("git_diff")["has_changes"]
    assert "does not have any commits yet" in fresh.refused("git_log")
    assert "initial commit" in fresh.refused("git_stash")
    assert "invalid reference: HEAD" in fresh.refused("git_checkout", target="HEAD")
    fresh.plant(a_txt="a\n")
    assert "nothing is staged" in fresh.refused("git_commit", message="early")
    fresh.ok("git_checkout", target="start", create=True)
    fresh.ok("git_add", files=["a.txt"])
    assert fresh.ok("git_diff", staged=True)["has_changes"]
    done = fresh.ok("git_commit", message="first")
    assert fresh.git("log", "--all", "--format=%H %D") == f"{done['commit_hash']} HEAD -> start\n"


# --- git_diff -------------------------------------------------------------------------------------


DIFFS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["a.txt", "gone.txt"]),
    ({"file": "a.txt"}, ["a.txt"]),
    ({"file": "{root}/a.txt"}, ["a.txt"]),
    ({"file": "gone.txt"}, ["gone.txt"]),
    ({"file": "sub"}, []),
    ({"file": "."}, ["a.txt", "gone.txt"]),
    ({"file": "{root}"}, ["a.txt", "gone.txt"]),
    ({"file": ""}, ["a.txt", "gone.txt"]),
    ({"staged": True}, ["b.txt"]),
    ({"staged": True, "file": "a.txt"}, []),
    ({"base": "HEAD"}, ["a.txt", "b.txt", "gone.txt"]),
    ({"base": "main~1"}, ["a.txt", "b.txt", "sub/s.txt"]),
    ({"base": "main~1", "staged": True}, ["b.txt", "gone.txt", "sub/s.txt"]),
    ({"base": "HEAD~1..HEAD"}, ["gone.txt", "sub/s.txt"]),
    ({"base": "side...main", "file": "sub/s.txt"}, ["sub/s.txt"]),
    ({"base": "main", "file": "b.txt", "stat": False}, ["b.txt"]),
    ({"base": ""}, ["a.txt", "gone.txt"]),
]


def test_diff(simple: Repository) -> None:
    simple.git("branch", "side")
    (simple.root / "sub").mkdir()
    (simple.root / "sub/s.txt").write_text("s\n")
    simple.commit("second", gone_txt="gone\n")
    simple.plant(a_txt="one\n2\nthree\n", b_txt="B\n")
    simple.git("add", "b.txt")
    (simple.root / "gone.txt").unlink()
    for arguments, files in DIFFS:
        filled = {key: v.format(root=simple.root) if isinstance(v, str) else v for key, v in arguments.items()}
        result = simple.ok("git_diff", **filled)
        lines = result["diff"].splitlines()
        assert [line.split(" b/")[1] for line in lines if line.startswith("diff --git")] == files, arguments
        assert result["has_changes"] == bool(files), arguments
        assert not result["truncated"], arguments


def test_a_diff_is_a_patch(simple: Repository) -> None:
    simple.plant(a_txt="one\n2\nthree\n")
    diff = simple.ok("git_diff")["diff"]
    assert diff.startswith("diff --git a/a.txt b/a.txt\nindex ")
    assert diff.endswith("@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n")


def test_diff_stat(simple: Repository) -> None:
    simple.plant(a_txt="one\n2\nthree\n")
    assert simple.ok("git_diff", stat=True)["diff"] == (
        " a.txt | 2 +-\n 1 file changed, 1 insertion(+), 1 deletion(-)\n"
    )


def test_a_long_diff_is_cut_and_says_so(simple: Repository) -> None:
    simple.plant(a_txt="".join(f"line {number}\n" for number in range(3000)))
    result = simple.ok("git_diff")
    assert result["truncated"]
    assert "left out" in result["diff"]
    assert len(result["diff"]) < simple.bench.max_result_chars
    assert result["diff"].startswith("diff --git a/a.txt b/a.txt\n")
    assert result["diff"].endswith("+line 2999\n")


# --- git_add --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "staged"),
    [
        ({"files": ["a.txt"]}, ["M\ta.txt"]),
        ({"files": ["new.txt", "a.txt"]}, ["M\ta.txt", "A\tnew.txt"]),
        ({"files": ["b.txt"]}, ["D\tb.txt"]),
        ({"files": ["{root}/b.txt"]}, ["D\tb.txt"]),
        ({"files": ["./a.txt"]}, ["M\ta.txt"]),
        ({"files": ["sub"]}, ["A\tsub/s.txt"]),
        ({"files": ["sub/"]}, ["A\tsub/s.txt"]),
        ({"files": ["."]}, ["M\ta.txt", "D\tb.txt", "A\tnew.txt", "A\tsub/s.txt"]),
        ({"files": ["{root}"]}, ["M\ta.txt", "D\tb.txt", "A\tnew.txt", "A\tsub/s.txt"]),
        ({"all": True}, ["M\ta.txt", "D\tb.txt", "A\tnew.txt", "A\tsub/s.txt"]),
        ({"all": "true"}, ["M\ta.txt", "D\tb.txt", "A\tnew.txt", "A\tsub/s.txt"]),
    ],
)
def test_add(simple: Repository, arguments: dict[str, Any], staged: list[str]) -> None:
    simple.plant(a_txt="changed\n", new_txt="new\n")
    (simple.root / "sub").mkdir()
    (simple.root / "sub/s.txt").write_text("s\n")
    (simple.root / "b.txt").unlink()
    if "files" in arguments:
        arguments = {"files": [file.format(root=simple.root) for file in arguments["files"]]}
    message = simple.ok("git_add", **arguments)["message"]
    assert message.startswith("staged ")
    assert simple.git("diff", "--cached", "--name-status").splitlines() == staged


BAD_ADDS: list[tuple[dict[str, Any], str]] = [
    ({}, "all=true"),
    ({"files": []}, "all=true"),
    ({"files": ["a.txt"], "all": True}, "either"),
    ({"files": ["nope.txt"]}, "pathspec 'nope.txt' did not match any files"),
    ({"files": ["kept.log"]}, "ignored by one of your .gitignore files"),
    ({"files": [".git/config"]}, "git's own files"),
    ({"files": ["sub/.GIT/x"]}, "git's own files"),
]


def test_add_refuses(simple: Repository) -> None:
    simple.commit("ignore", _gitignore="*.log\n")
    simple.plant(a_txt="changed\n", kept_log="x\n")
    for arguments, word in BAD_ADDS:
        assert word in simple.refused("git_add", **arguments), arguments
        assert simple.git("diff", "--cached", "--name-only") == "", arguments


# --- git_commit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "body", "stored"),
    [
        ("Say hello", None, "Say hello\n"),
        ("Say hello", "", "Say hello\n"),
        ("Say hello", "Because\n\n# it is polite\n", "Say hello\n\nBecause\n\n# it is polite\n"),
        ("-F/etc/passwd", None, "-F/etc/passwd\n"),
        ("--amend", "--no-verify", "--amend\n\n--no-verify\n"),
        ("# not a comment", None, "# not a comment\n"),
        ('"$(id)" `id` \\n; é 🦀', None, '"$(id)" `id` \\n; é 🦀\n'),
        ("  \n\nSay hello  \n\n", None, "Say hello\n"),
        ("one\ntwo", None, "one\ntwo\n"),
        ("fixup! x", None, "fixup! x\n"),
    ],
)
def test_commit(simple: Repository, message: str, body: str | None, stored: str) -> None:
    simple.git("config", "commit.cleanup", "strip")
    simple.plant(a_txt="changed\n", b_txt="not staged\n")
    simple.git("add", "a.txt")
    result = simple.ok("git_commit", message=message, body=body)
    assert result["commit_hash"] == simple.git("rev-parse", "HEAD").strip()
    assert result["message"] == message
    assert "1 file changed" in result["output"]
    assert simple.git("log", "-1", "--format=%B") == f"{stored}\n"
    assert simple.git("rev-list", "--count", "HEAD") == "2\n"
    assert simple.git("log", "-1", "--format=%an %ae %cn %ce") == (
        "Ada Lovelace ada@example.org Ada Lovelace ada@example.org\n"
    )
    assert simple.status() == [" M b.txt"]


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ("a\0b", "NUL"),
        ("a\udcff", "no valid text"),
        ("a\ud800", "no valid text"),
        ("x" * 200_000, "cannot be started"),
    ],
)
def test_a_message_that_is_none(simple: Repository, message: str, word: str) -> None:
    simple.plant(a_txt="changed\n")
    simple.git("add", "a.txt")
    assert word in simple.refused("git_commit", message=message)
    assert simple.status() == ["M  a.txt"]


@pytest.mark.parametrize("change", ["none", "unstaged", "untracked"])
def test_nothing_staged(simple: Repository, change: str) -> None:
    if change != "none":
        simple.plant(**{"a_txt" if change == "unstaged" else "new_txt": "changed\n"})
    error = simple.refused("git_commit", message="x")
    assert error.startswith("nothing is staged: choose with git_add")
    assert simple.git("rev-list", "--count", "HEAD") == "1\n"


def test_a_hook_that_refuses_is_heard(repo: Repository) -> None:
    repo.hook("pre-commit", "echo the linter complains; echo nothing to commit here; echo line 3 is bad >&2; exit 1")
    repo.plant(a_txt="changed\n")
    repo.git("add", "a.txt")
    error = repo.refused("git_commit", message="x")
    assert "the linter complains" in error
    assert "line 3 is bad" in error
    assert repo.git("rev-list", "--count", "HEAD") == "1\n"
    assert repo.status() == ["M  a.txt"]


def test_hooks_run_as_git_runs_them(repo: Repository) -> None:
    """Nothing of how the tools ask for paths reaches the commands of a hook."""
    repo.hook("pre-commit", "echo formatted > a.txt; git add -- '*.txt'")
    repo.hook("commit-msg", 'echo "Ticket: 7" >> "$1"')
    repo.hook("post-checkout", "git ls-files -- '*.txt' | grep -q a.txt && echo seen")
    repo.plant(b_txt="changed\n")
    repo.git("add", "b.txt")
    repo.ok("git_commit", message="x")
    assert repo.git("show", "HEAD:a.txt") == "formatted\n"
    assert repo.git("log", "-1", "--format=%B") == "x\nTicket: 7\n\n"
    assert "seen" in repo.ok("git_checkout", target="HEAD~1", files=["a.txt"])["output"]


# --- git_log, git_blame ---------------------------------------------------------------------------


LOGS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, [f"change {number}" for number in range(11, 1, -1)]),
    ({"count": 2}, ["change 11", "change 10"]),
    ({"count": 200}, [*(f"change {number}" for number in range(11, -1, -1)), "first"]),
    ({"count": 3, "file": "even.txt"}, ["change 10", "change 8", "change 6"]),
    ({"file": "a.txt"}, ["first"]),
    ({"file": "no/such"}, []),
]


def test_log(simple: Repository) -> None:
    for number in range(12):
        simple.commit(f"change {number}", **{"odd_txt" if number % 2 else "even_txt": f"{number}\n"})
    for arguments, subjects in LOGS:
        result = simple.ok("git_log", **arguments, oneline=True)
        lines = [line.split(" ", 1)[1].removeprefix("(HEAD -> main) ") for line in result["log"].splitlines()]
        assert lines == subjects, arguments
        assert result["commit_count"] == len(subjects), arguments
        full = simple.ok("git_log", **arguments)
        assert [line.strip() for line in full["log"].splitlines() if line.startswith("    ")] == subjects, arguments
        authors = full["log"].count("Author: Ada Lovelace <ada@example.org>\n")
        assert authors == full["commit_count"] == len(subjects), arguments


@pytest.mark.parametrize("count", [0, -1, 201, 10**9])
def test_how_many_commits_is_bounded(bench: Bench, count: int) -> None:
    with pytest.raises(ToolError, match="count"):
        bench.call("git_log", count=count)


@pytest.mark.parametrize(
    ("lines", "shown"),
    [(None, ["one", "2", "three"]), ("", ["one", "2", "three"]), ("2,3", ["2", "three"]), ("1,1", ["one"])],
)
def test_blame(simple: Repository, lines: str | None, shown: list[str]) -> None:
    simple.commit("second", a_txt="one\n2\nthree\n")
    result = simple.ok("git_blame", file="a.txt", lines=lines)
    found = result["blame"].splitlines()
    assert [line.split(") ", 1)[1] for line in found] == shown
    assert all("Ada Lovelace" in line for line in found)
    second = simple.git("rev-parse", "--short=8", "HEAD").strip()
    assert [line.startswith(second) for line in found] == [text == "2" for text in shown]


BAD_BLAMES: list[tuple[dict[str, Any], str]] = [
    ({"lines": "3,2"}, "such as 10,20"),
    ({"lines": "0,1"}, "such as 10,20"),
    ({"lines": "1"}, "such as 10,20"),
    ({"lines": "1,2\n"}, "such as 10,20"),
    ({"lines": "1,+2"}, "such as 10,20"),
    ({"lines": "/one/,/two/"}, "such as 10,20"),
    ({"lines": ":main"}, "such as 10,20"),
    ({"lines": "١,٢"}, "such as 10,20"),
    ({"lines": f"1,{10**30}"}, "such as 10,20"),
    ({"lines": "9,9"}, "has only 3 lines"),
    ({"file": "nope"}, "no such path"),
    ({"file": "*.txt"}, "no such path"),
    ({"file": "."}, "no such path"),
]


def test_blame_refuses(simple: Repository) -> None:
    for arguments, word in BAD_BLAMES:
        assert word in simple.refused("git_blame", **{"file": "a.txt", **arguments}), arguments


# --- git_branch, git_checkout ---------------------------------------------------------------------


def test_branches(simple: Repository) -> None:
    simple.git("branch", "topic/one")
    simple.git("branch", "zeta")
    simple.git("update-ref", "refs/remotes/origin/main", "HEAD")
    assert simple.ok("git_branch") == {
        "current": "main",
        "branches": ["main", "topic/one", "zeta"],
        "count": 3,
        "success": True,
    }
    everything = simple.ok("git_branch", all=True)
    assert everything["branches"] == ["main", "topic/one", "zeta", "remotes/origin/main"]
    assert everything["count"] == 4


def test_checkout_switches_and_makes_branches(repo: Repository) -> None:
    made = repo.ok("git_checkout", target="topic", create=True)
    assert made == {
        "success": True,
        "target": "topic",
        "created": True,
        "output": "Switched to a new branch 'topic'",
    }
    repo.commit("on topic", a_txt="topic\n")
    back = repo.ok("git_checkout", target="main")
    assert (back["created"], back["output"]) == (False, "Switched to branch 'main'")
    assert repo.git("branch", "--show-current") == "main\n"
    repo.ok("git_checkout", target="topic~1")
    assert repo.git("branch", "--show-current") == ""
    repo.git("tag", "v1", "topic")
    repo.ok("git_checkout", target="v1")
    assert (repo.root / "a.txt").read_text() == "topic\n"


def test_checkout_keeps_changes(repo: Repository) -> None:
    repo.git("checkout", "-q", "-b", "topic")
    repo.commit("on topic", a_txt="topic\n", secret_env="from topic\n")
    repo.git("checkout", "-q", "main")
    repo.git("branch", "same")
    repo.plant(a_txt="mine\n")
    assert "would be overwritten" in repo.refused("git_checkout", target="topic")
    assert "M\ta.txt" in repo.ok("git_checkout", target="same")["output"]
    assert (repo.root / "a.txt").read_text() == "mine\n"
    repo.git("restore", "a.txt")
    repo.plant(secret_env="mine\n")
    assert "would be overwritten" in repo.refused("git_checkout", target="topic")
    (repo.root / ".git/info").mkdir()
    (repo.root / ".git/info/exclude").write_text("secret.env\n")
    assert "would be overwritten" in repo.refused("git_checkout", target="topic")
    assert (repo.root / "secret.env").read_text() == "mine\n"
    assert repo.git("branch", "--show-current") == "same\n"


def test_checkout_of_a_file_s_name_is_no_way_to_lose_it(simple: Repository) -> None:
    simple.plant(a_txt="mine\n")
    assert "invalid reference: a.txt" in simple.refused("git_checkout", target="a.txt")
    assert (simple.root / "a.txt").read_text() == "mine\n"


@pytest.mark.parametrize(
    ("files", "left"),
    [
        (["a.txt"], ["b.txt", "gone.txt", "sub/s.txt"]),
        (["gone.txt", "./a.txt"], ["b.txt", "sub/s.txt"]),
        (["{root}/a.txt", "b.txt"], ["gone.txt", "sub/s.txt"]),
        (["sub"], ["a.txt", "b.txt", "gone.txt"]),
        (["."], []),
    ],
)
def test_checkout_of_files(simple: Repository, files: list[str], left: list[str]) -> None:
    (simple.root / "sub").mkdir()
    (simple.root / "sub/s.txt").write_text("s\n")
    simple.commit("second", gone_txt="gone\n")
    (simple.root / "gone.txt").unlink()
    (simple.root / "sub/s.txt").write_text("mine\n")
    simple.plant(a_txt="mine\n", b_txt="mine\n")
    names = [file.format(root=simple.root) for file in files]
    result = simple.ok("git_checkout", target="HEAD", files=names)
    assert (result["target"], result["created"]) == ("HEAD", False)
    assert [line[3:] for line in simple.status()] == left
    assert simple.git("branch", "--show-current") == "main\n"


def test_checkout_of_a_file_as_it_was(simple: Repository) -> None:
    simple.commit("second", a_txt="two\n")
    simple.ok("git_checkout", target="HEAD~1", files=["a.txt"])
    assert (simple.root / "a.txt").read_text() == "one\ntwo\nthree\n"
    assert simple.git("log", "--format=%s") == "second\nfirst\n"


BAD_CHECKOUTS: list[tuple[dict[str, Any], str]] = [
    ({"target": "nope"}, "invalid reference: nope"),
    ({"target": "main", "create": True}, "already exists"),
    ({"target": "a..b", "create": True}, "not a valid branch name"),
    ({"target": "x", "create": True, "files": ["a.txt"]}, "give one of them"),
    ({"target": "HEAD", "files": ["nope.txt"]}, "pathspec 'nope.txt' did not match"),
    ({"target": "HEAD", "files": ["*.txt"]}, "pathspec '*.txt' did not match"),
    ({"target": "nope", "files": ["a.txt"]}, "invalid reference: nope"),
    ({"target": "only-there"}, "invalid reference: only-there"),
]


def test_checkout_refuses(simple: Repository) -> None:
    simple.git("remote", "add", "origin", "https://example.org/x")
    simple.git("update-ref", "refs/remotes/origin/only-there", "HEAD")
    simple.plant(a_txt="mine\n")
    for arguments, word in BAD_CHECKOUTS:
        assert word in simple.refused("git_checkout", **arguments), arguments
        assert simple.status() == [" M a.txt"], arguments
    assert simple.git("branch", "--format=%(refname:short)") == "main\n"


@pytest.mark.parametrize("merge", ["always", "simple", "inherit"])
def test_a_new_branch_follows_no_other(simple: Repository, merge: str) -> None:
    simple.git("config", "branch.autoSetupMerge", merge)
    simple.git("remote", "add", "origin", "https://example.org/x")
    simple.git("update-ref", "refs/remotes/origin/topic", "HEAD")
    simple.ok("git_checkout", target="topic", create=True)
    simple.ok("git_checkout", target="origin/topic")
    simple.ok("git_checkout", target="other", create=True)
    assert simple.git("branch", "--show-current") == "other\n"


# --- git_stash ------------------------------------------------------------------------------------


def test_stash_there_and_back(repo: Repository) -> None:
    assert repo.ok("git_stash", action="list")["output"] == ""
    repo.plant(a_txt="one\n", new_txt="untracked\n")
    assert repo.ok("git_stash", message="--all")["output"] == ("Saved working directory and index state On main: --all")
    assert repo.status() == ["?? new.txt"]
    repo.plant(a_txt="two\n")
    repo.ok("git_stash", action="push")
    listed = repo.ok("git_stash", action="list")["output"].splitlines()
    assert listed[0].startswith("stash@{0}: WIP on main: ")
    assert listed[1] == "stash@{1}: On main: --all"
    shown = repo.ok("git_stash", action="show", index=1)["output"]
    assert " a.txt | 2 --\n" in shown
    assert shown.endswith("@@ -1,3 +1 @@\n one\n-two\n-three")
    repo.ok("git_stash", action="drop", index=0)
    assert repo.ok("git_stash", action="pop", index=0)["action"] == "pop"
    assert (repo.root / "a.txt").read_text() == "one\n"
    assert repo.git("stash", "list") == ""


def test_nothing_to_stash_is_an_error(simple: Repository) -> None:
    """Else a pop that follows would bring back what it should not."""
    simple.plant(new_txt="untracked\n")
    assert "nothing was stashed" in simple.refused("git_stash")


@pytest.mark.parametrize("action", ["pop", "drop", "show"])
def test_a_stash_entry_that_is_not_there(simple: Repository, action: str) -> None:
    assert "stash@{0}" in simple.refused("git_stash", action=action)
    simple.plant(a_txt="changed\n")
    simple.git("stash")
    assert simple.refused("git_stash", action=action, index=7)
    assert simple.git("stash", "list").count("\n") == 1


def test_a_pop_that_meets_a_conflict_keeps_the_entry_and_says_so(repo: Repository) -> None:
    repo.plant(a_txt="mine\n")
    repo.git("stash")
    repo.commit("theirs", a_txt="theirs\n")
    error = repo.refused("git_stash", action="pop")
    assert "CONFLICT (content): Merge conflict in a.txt" in error
    assert "The stash entry is kept" in error
    assert repo.git("stash", "list").count("\n") == 1


# --- a merge --------------------------------------------------------------------------------------


def test_a_conflict_is_seen_resolved_and_committed(repo: Repository) -> None:
    repo.git("checkout", "-q", "-b", "topic")
    repo.commit("on topic", a_txt="topic\n")
    repo.git("checkout", "-q", "main")
    repo.commit("on main", a_txt="main\n")
    repo.bench.bash("git merge topic")
    status = repo.ok("git_status", short=True)
    assert "UU a.txt" in status["status"]
    assert not status["is_clean"]
    assert "You have unmerged paths." in repo.ok("git_status")["status"]
    assert repo.ok("git_diff")["diff"].startswith("diff --cc a.txt\n")
    assert "unmerged files" in repo.refused("git_commit", message="too early")
    assert "resolve your current index first" in repo.refused("git_checkout", target="topic")
    assert "a.txt" in repo.refused("git_stash")
    repo.plant(a_txt="both\n")
    repo.ok("git_add", files=["a.txt"])
    repo.ok("git_commit", message="Merge topic")
    assert repo.git("log", "-1", "--format=%s %p").count(" ") == 3
    assert repo.ok("git_status")["is_clean"]


def test_a_merge_that_changes_nothing_is_committed(simple: Repository) -> None:
    simple.git("checkout", "-q", "-b", "topic")
    simple.commit("empty")
    simple.git("checkout", "-q", "main")
    simple.git("merge", "-q", "--no-ff", "--no-commit", "topic")
    simple.ok("git_commit", message="Merge topic")
    assert simple.git("log", "-1", "--format=%p").count(" ") == 1
