"""`edit_file`: exactly the text that was meant, with everything else as it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pawand.tools.diffs import Edit, unified_diff
from tests.tools.conftest import Bench, needs_git, tree

CODE = """def one():
    return 1


def two():
    return 2
"""


@pytest.fixture
def code(bench: Bench) -> Path:
    path = bench.root / "code.py"
    path.write_text(CODE)
    return path


def test_a_text_that_stands_once_is_replaced(bench: Bench, code: Path) -> None:
    result = bench.ok("edit_file", path="code.py", old_string="return 1", new_string="return one")
    assert code.read_text() == CODE.replace("return 1", "return one")
    assert result["replacements"] == 1
    assert result["path"] == "code.py"
    assert result["diff"].splitlines() == [
        "--- a/code.py",
        "+++ b/code.py",
        "@@ -1,5 +1,5 @@",
        " def one():",
        "-    return 1",
        "+    return one",
        " ",
        " ",
        " def two():",
    ]


def test_a_text_that_stands_nowhere_shows_the_nearest_lines(bench: Bench, code: Path) -> None:
    error = bench.refused("edit_file", path="code.py", old_string="  return  2\n", new_string="x")
    assert "does not stand in code.py" in error
    assert "6:     return 2" in error
    assert "2:     return 1" in error
    assert code.read_text() == CODE


def test_a_text_like_nothing_in_the_file_says_to_read_it(bench: Bench, code: Path) -> None:
    error = bench.refused("edit_file", path="code.py", old_string="zebra crossing", new_string="x")
    assert error.endswith("Read the file again.")


def test_nearest_lines_are_short_even_in_a_minified_file(bench: Bench) -> None:
    (bench.root / "min.js").write_text("\n".join("var a=1;" * 20_000 for _ in range(5)))
    started = time.monotonic()
    error = bench.refused("edit_file", path="min.js", old_string="var a=1;" * 10_000 + "!", new_string="x")
    assert len(error) < 5000
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("text", "old"),
    [("a b a", "a"), (CODE, "return"), ("}\n}\n}\n", "}\n}\n"), ("aaa", "aa"), ("\n\n\n", "\n\n")],
)
def test_a_text_that_stands_more_than_once_is_refused(bench: Bench, text: str, old: str) -> None:
    (bench.root / "file").write_text(text)
    error = bench.refused("edit_file", path="file", old_string=old, new_string="x")
    assert "2 times" in error
    assert "replace_all" in error
    assert (bench.root / "file").read_text() == text


def test_replace_all(bench: Bench, code: Path) -> None:
    result = bench.ok("edit_file", path="code.py", old_string="return", new_string="yield", replace_all=True)
    assert code.read_text() == CODE.replace("return", "yield")
    assert result["replacements"] == 2


def test_replace_all_needs_one_too(bench: Bench, code: Path) -> None:
    bench.refused("edit_file", path="code.py", old_string="no such", new_string="x", replace_all=True)


@pytest.mark.parametrize(
    ("before", "old", "new", "after"),
    [
        ("a\r\nb\r\nc\r\n", "a\nb\n", "x\ny\n", "x\r\ny\r\nc\r\n"),
        ("a\r\nb\r\nc\r\n", "b", "x\ny", "a\r\nx\r\ny\r\nc\r\n"),
        ("a\r\nb\r\n", "a\r\nb", "x\r\ny", "x\r\ny\r\n"),
        ("a\r\nb\r\n", "a\nb", "x\r\ny", "x\r\ny\r\n"),
        ("a\r\nb\r\nc\r\n", "a\r\nb\r\n", "x\ny\n", "x\r\ny\r\nc\r\n"),
        ("a\r\nb\nc\n", "a\r\nb\nc", "x\r\nb\nc", "x\r\nb\nc\n"),
        ("\ufeffa\nb\n", "\ufeffa", "\ufeffx", "\ufeffx\nb\n"),
        ("a\nb\n", "a\nb\n", "x\ny\n", "x\ny\n"),
        ("a\nb", "b", "c", "a\nc"),
        ("a\nb\n", "b", "c", "a\nc\n"),
        ("a\nb", "b", "c\n", "a\nc\n"),
        ("a\nb\n", "b\n", "b", "a\nb"),
        ("a\nb\nc\n", "b\n", "", "a\nc\n"),
        ("\ufeffa\nb\n", "a", "x", "\ufeffx\nb\n"),
        ("näïve 🦀\n", "🦀", "🐍", "näïve 🐍\n"),
        ("a\x0cb\u2028c\n", "b", "x", "a\x0cx\u2028c\n"),
        ("$1 \\1 {x}", "$1", "\\g<0>", "\\g<0> \\1 {x}"),
    ],
    ids=repr,
)
def test_line_endings_and_all_else_are_kept(bench: Bench, before: str, old: str, new: str, after: str) -> None:
    (bench.root / "file").write_bytes(before.encode())
    bench.ok("edit_file", path="file", old_string=old, new_string=new)
    assert (bench.root / "file").read_bytes() == after.encode()


@pytest.mark.parametrize(
    ("new", "after"), [(["x", "y"], "a\nx\ny\nc\n"), ([], "a\n\nc\n"), (["x", ""], "a\nx\n\nc\n")], ids=repr
)
def test_the_new_text_may_be_a_list_of_lines(bench: Bench, new: list[str], after: str) -> None:
    (bench.root / "file").write_text("a\nb\nc\n")
    bench.ok("edit_file", path="file", old_string="b", new_string=new)
    assert (bench.root / "file").read_text() == after


@pytest.mark.parametrize("before", ["a\nb\n", "a\r\nb\r\n"])
@pytest.mark.parametrize("new", ["a\nb", ["a", "b"]], ids=repr)
def test_the_same_text_is_refused(bench: Bench, before: str, new: str | list[str]) -> None:
    (bench.root / "file").write_bytes(before.encode())
    error = bench.refused("edit_file", path="file", old_string="a\nb", new_string=new)
    assert "the same" in error


def test_an_empty_old_text_is_refused(bench: Bench, code: Path) -> None:
    with pytest.raises(Exception, match="old_string"):
        bench.call("edit_file", path="code.py", old_string="", new_string="x")


def test_a_missing_file_is_refused_and_not_made(bench: Bench) -> None:
    assert "does not exist" in bench.refused("edit_file", path="no.py", old_string="a", new_string="b")
    assert tree(bench.root) == {}


def test_an_edit_goes_on_after_a_change_elsewhere_in_the_file(bench: Bench, code: Path) -> None:
    bench.ok("read_file", path="code.py")
    code.write_text(CODE.replace("return 2", "return 22"))
    bench.ok("edit_file", path="code.py", old_string="return 1", new_string="return 11")
    assert code.read_text() == CODE.replace("return 2", "return 22").replace("return 1", "return 11")


def test_edits_follow_each_other_and_a_write_may_follow_an_edit(bench: Bench, code: Path) -> None:
    bench.ok("read_file", path="code.py")
    bench.ok("edit_file", path="code.py", old_string="return 1", new_string="return 11")
    bench.ok("edit_file", path="code.py", old_string="return 11", new_string="return 111")
    bench.ok("write_file", path="code.py", content="done\n")
    assert code.read_text() == "done\n"


DIFFS = [
    ("a\nb\n", "a\nc\n"),
    ("a\nb", "a\nb\n"),
    ("a\nb\n", "a\nb"),
    ("", "a\n"),
    ("a\n", ""),
    ("a\r\nb\r\n", "a\r\nc\r\n"),
    ("a\r\nb\r\n", "a\nb\r\n"),
    ("a\x0cb\nc\n", "a\x0cx\nc\n"),
    ("one\u2028two\nx\n", "one\u2028two\ny\n"),
    ("a\rb\nc\n", "a\rb\nd\n"),
    ("".join(f"{n}\n" for n in range(100)), "".join(f"{n}{'!' if n in (3, 50, 99) else ''}\n" for n in range(100))),
]


def apply(diff: str, before: str, folder: Path) -> str:
    """What git makes of `before` with the diff."""
    file = folder / "file.txt"
    file.write_bytes(before.encode())
    command = ["git", "apply", "--whitespace=nowarn", "-"]
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run(command, input=diff.encode(), cwd=folder, env=env, capture_output=True, check=False)
    assert done.returncode == 0, (done.stderr, diff)
    return file.read_bytes().decode()


@needs_git
@pytest.mark.parametrize(("before", "after"), DIFFS, ids=repr)
def test_the_diff_is_one_that_git_can_apply(tmp_path: Path, before: str, after: str) -> None:
    diff = unified_diff(before, [Edit(0, len(before), after)], "file.txt")
    assert apply(diff + "\n", before, tmp_path) == after


LINES = st.lists(st.sampled_from(["a", "b", "c", "", "\ta", "x\x0cy", "z\u2028"]), max_size=12)
ENDS = st.sampled_from(["", "\n"])


@needs_git
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=LINES, after=LINES, before_end=ENDS, after_end=ENDS)
def test_any_diff_can_be_applied(
    tmp_path: Path, before: list[str], after: list[str], before_end: str, after_end: str
) -> None:
    one, other = "\n".join(before) + before_end, "\n".join(after) + after_end
    diff = unified_diff(one, [Edit(0, len(one), other)], "file.txt")
    if one == other:
        assert diff == ""
    else:
        folder = tmp_path / "applied"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        assert apply(diff + "\n", one, folder) == other
