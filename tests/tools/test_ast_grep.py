"""`ast_grep`: code found and rewritten by its structure, with the boundary between the program and the files."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pawand.tools import ast_grep
from tests.tools.conftest import SECRET, Bench, Hide, needs_git, tree
from tests.tools.test_edit import apply

pytestmark = pytest.mark.skipif(
    shutil.which("ast-grep") is None and not Path(sys.executable).with_name("ast-grep").exists(),
    reason="ast-grep is not installed",
)
TOOL = "ast_grep"
CODE = 'foo(1)\nbar(foo(2), foo(foo(3)))\nx = "ü foo(9)"; foo(4)  # foo(5)\n'


@pytest.fixture
def wood(shell_bench: Bench) -> Bench:
    for name, text in {
        "a.py": CODE,
        "sub/b.py": "foo(7)\n",
        "c.js": "foo(8)\n",
        "no.txt": "foo(1)\n",
        "out/d.py": "foo(1)\n",
        ".hidden.py": "foo(1)\n",
        "latin.py": "foo('\udce9')\n",
        ".gitignore": "out/\n",
    }.items():
        path = shell_bench.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.fsencode(text) if "\udce9" in text else text.encode())
    return shell_bench


def test_search_shows_path_line_and_text(wood: Bench) -> None:
    result = wood.ok(TOOL, action="search", pattern="foo($A)", path=".", lang="python")
    found = [(row["path"], row["line"], row["text"]) for row in result.pop("results")]
    assert found == [
        ("a.py", 1, "foo(1)"),
        ("a.py", 2, "foo(2)"),
        ("a.py", 2, "foo(foo(3))"),
        ("a.py", 2, "foo(3)"),
        ("a.py", 3, "foo(4)"),
        ("sub/b.py", 1, "foo(7)"),
    ]
    assert result == {"success": True, "action": "search", "matches": 6}


@pytest.mark.parametrize(
    ("arguments", "paths"),
    [
        ({"path": "sub"}, ["sub/b.py"]),
        ({"path": "{root}/sub"}, ["sub/b.py"]),
        ({"path": "c.js"}, ["c.js"]),
        ({"path": "out"}, ["out/d.py"]),
        ({"path": "out/d.py"}, ["out/d.py"]),
        ({"path": ".", "lang": "javascript"}, ["c.js"]),
        ({"path": "no.txt"}, []),
        ({"path": ".", "pattern": "nothing($A)"}, []),
        ({"path": ".", "pattern": "-x"}, []),
        ({"path": "."}, ["a.py"] * 5 + ["c.js", "sub/b.py"]),
    ],
    ids=repr,
)
def test_where_it_searches(wood: Bench, arguments: dict[str, Any], paths: list[str]) -> None:
    path = arguments["path"].format(root=wood.root)
    result = wood.ok(TOOL, **{"action": "search", "pattern": "foo($A)", **arguments, "path": path})
    assert [row["path"] for row in result["results"]] == paths
    assert result["matches"] == len(paths)


@needs_git
def test_rewrite_takes_the_outermost_and_says_what_is_left(wood: Bench, tmp_path: Path) -> None:
    (wood.root / "a.py").chmod(0o755)
    before = tree(wood.root)
    result = wood.ok(TOOL, action="rewrite", pattern="foo($A)", rewrite="baz($A)", path=".", lang="python")
    after = CODE.replace("foo(1)", "baz(1)").replace("foo(2)", "baz(2)").replace("foo(foo(3))", "baz(foo(3))")
    after = after.replace("; foo(4)", "; baz(4)")
    changed = {"a.py": after.encode(), "sub/b.py": b"baz(7)\n"}
    assert tree(wood.root) == {**before, **changed}
    assert (wood.root / "a.py").stat().st_mode & 0o777 == 0o755
    assert [(row["path"], row["replacements"]) for row in result["files"]] == [("a.py", 4), ("sub/b.py", 1)]
    assert result["matches"] == 6
    assert "1 matches inside others" in result["note"]
    folder = tmp_path / "applied"
    folder.mkdir()
    assert apply(result["files"][0]["diff"].replace("/a.py", "/file.txt") + "\n", CODE, folder) == after
    again = wood.ok(TOOL, action="rewrite", pattern="foo($A)", rewrite="baz($A)", path=".", lang="python")
    assert again["matches"] == 1
    assert "note" not in again
    wood.ok("write_file", path="a.py", content="done\n")


@pytest.mark.parametrize(
    ("before", "rewrite", "after"),
    [
        ("foo(1)\r\nx\r\n", "a($A)\nb($A)", "a(1)\r\nb(1)\r\nx\r\n"),
        ("\ufefffoo(1)\nx", "y($A)", "\ufeffy(1)\nx"),
        ("foo(1)\nx", "", "\nx"),
        ("foo(1)\n", "-$A", "-1\n"),
    ],
    ids=repr,
)
def test_all_else_in_the_file_stays(shell_bench: Bench, before: str, rewrite: str, after: str) -> None:
    (shell_bench.root / "a.py").write_bytes(before.encode())
    shell_bench.ok(TOOL, action="rewrite", pattern="foo($A)", rewrite=rewrite, path="a.py")
    assert (shell_bench.root / "a.py").read_bytes().decode() == after


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"rewrite": "x"}, "goes with the action rewrite"),
        ({"action": "rewrite"}, "goes with the action rewrite"),
        ({"pattern": "foo bar"}, "pattern"),
        ({"pattern": "a\0"}, "pattern holds a NUL"),
        ({"pattern": "\ud800"}, "pattern is no valid text"),
        ({"pattern": "\udc80"}, "pattern is no valid text"),
        ({"pattern": "x" * 200_000}, "cannot be started"),
        ({"lang": "no-such"}, "not supported"),
        ({"lang": "--update-all"}, "not supported"),
        ({"action": "rewrite", "rewrite": "a\0"}, "rewrite holds a NUL"),
        ({"path": "no/such"}, "does not exist"),
        ({"path": "--update-all"}, "does not exist"),
        ({"path": "latin.py"}, "not UTF-8"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_is_wrong_is_told_and_changes_nothing(wood: Bench, arguments: dict[str, Any], part: str) -> None:
    before = tree(wood.root)
    call = {"action": "search", "pattern": "foo($A)", "path": ".", "lang": "python", **arguments}
    assert part in wood.refused(TOOL, **call)
    assert tree(wood.root) == before


def test_links_are_not_stepped_into(shell_bench: Bench, outside: Path) -> None:
    (outside / "s.py").write_text(f"foo('{SECRET}')\n")
    (shell_bench.root / "link").symlink_to(outside)
    (shell_bench.root / "s.py").symlink_to(outside / "s.py")
    before = tree(outside)
    for path in (".", "s.py", "link", "link/s.py"):
        for more in ({"action": "search"}, {"action": "rewrite", "rewrite": "x"}):
            outcome = shell_bench.call(TOOL, pattern="foo($A)", path=path, lang="python", **more)
            assert SECRET not in outcome.text
    assert tree(outside) == before


def test_files_of_git_are_not_rewritten_and_the_others_are(shell_bench: Bench) -> None:
    (shell_bench.root / ".git").mkdir()
    (shell_bench.root / ".git" / "hook.py").write_text("foo(1)\n")
    outcome = shell_bench.call(TOOL, action="rewrite", pattern="foo($A)", rewrite="x", path=".git/hook.py")
    assert not outcome.success
    assert outcome.content["files"] == []
    assert "git" in outcome.content["failed"][0]["error"]
    assert (shell_bench.root / ".git" / "hook.py").read_text() == "foo(1)\n"


def test_the_settings_of_a_workspace_are_not_read(wood: Bench) -> None:
    (wood.root / "sgconfig.yml").write_text("customLanguages: {evil: {libraryPath: ./evil.so, extensions: [py]}}\n[\n")
    assert wood.ok(TOOL, action="search", pattern="foo($A)", path="sub")["matches"] == 1


def test_many_matches_are_counted_and_few_are_shown(bench: Bench) -> None:
    (bench.root / "a.py").write_text("foo(1)\n" * 10_001)
    result = bench.ok(TOOL, action="search", pattern="foo($A)", path=".")
    assert result["matches"] == 10_001
    assert [row["line"] for row in result["results"]] == list(range(1, 51))
    error = bench.refused(TOOL, action="rewrite", pattern="foo($A)", rewrite="x", path=".")
    assert "10001 matches are too many" in error
    assert (bench.root / "a.py").read_text() == "foo(1)\n" * 10_001


def test_many_files_are_given_in_parts(bench: Bench) -> None:
    for number in range(1500):
        (bench.root / f"{number:04d}-{'x' * 200}.py").write_text("foo(1)\n")
    assert bench.ok(TOOL, action="search", pattern="foo($A)", path=".")["matches"] == 1500


def test_a_hostile_line_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ast_grep, "TIMEOUT_SECS", 1)
    (bench.root / "a.js").write_text("foo(1);" * 300_000)
    started = time.monotonic()
    error = bench.refused(TOOL, action="search", pattern="foo($A)", path=".")
    assert "give a smaller folder" in error
    assert time.monotonic() - started < 5


def test_without_the_program_it_says_how_to_install_it(
    bench: Bench, hide: Hide, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide("ast-grep")
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    assert "pip install" in bench.refused(TOOL, action="search", pattern="x", path=".")
