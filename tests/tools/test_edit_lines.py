"""`edit_file_lines`: whole lines, by number or anchor, and not a byte of the others."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tools.conftest import Bench, MakeBench, needs_git, tree
from tests.tools.test_edit import apply

TOOL = "edit_file_lines"


@pytest.mark.parametrize(
    ("before", "arguments", "after"),
    [
        ("a\nb\nc\n", {"start_line": 2, "end_line": 2, "new_content": "x"}, "a\nx\nc\n"),
        ("a\nb\nc\n", {"start_line": 2, "end_line": 2, "new_content": "x\n"}, "a\nx\nc\n"),
        ("a\nb\nc\n", {"start_line": 1, "end_line": 3, "new_content": ["x", "y"]}, "x\ny\n"),
        ("a\nb\nc\n", {"start_line": 2, "end_line": 3, "new_content": ""}, "a\n"),
        ("a\nb\nc\n", {"start_line": 1, "end_line": 3, "new_content": []}, ""),
        ("a\nb\nc\n", {"start_line": 2, "end_line": 2, "new_content": [""]}, "a\n\nc\n"),
        ("a\nb\nc\n", {"start_line": 2, "end_line": 2, "new_content": "\n"}, "a\n\nc\n"),
        ("a\nb\nc\n", {"start_line": 2, "end_line": 2, "new_content": ["x\ny", "z"]}, "a\nx\ny\nz\nc\n"),
        ("a\nb", {"start_line": 2, "end_line": 2, "new_content": "x\ny\n"}, "a\nx\ny"),
        ("a", {"start_line": 1, "end_line": 1, "new_content": "x\r\ny"}, "x\r\ny"),
        ("a\r\nb\r\nc\r\n", {"start_line": 2, "end_line": 2, "new_content": "x\ny"}, "a\r\nx\r\ny\r\nc\r\n"),
        ("a\r\nb", {"start_line": 2, "end_line": 2, "new_content": "x\ny"}, "a\r\nx\r\ny"),
        ("a\r\nb\nc\r\nd\n", {"start_line": 2, "end_line": 3, "new_content": "b\nx\ny"}, "a\r\nb\nx\r\ny\r\nd\n"),
        ("\ufeffa\n\u2028b\x0c\n", {"start_line": 2, "end_line": 2, "new_content": "🦀"}, "\ufeffa\n🦀\n"),
        ("\ufeffa\nb\n", {"start_line": 1, "end_line": 1, "new_content": "x"}, "\ufeffx\nb\n"),
        ("\ufeffa\nb\n", {"start_line": 1, "end_line": 1, "new_content": "\ufeffx\ny"}, "\ufeffx\ny\nb\n"),
        ("\ufeffa\nb\n", {"start_line": 1, "end_line": 2, "new_content": ""}, "\ufeff"),
        ("\ufeffa\nb\n", {"anchor_text": "a", "new_content": "x"}, "\ufeffx\nb\n"),
        ("\ufeffa\nb\n", {"anchor_text": "\ufeffa\nb", "new_content": "x"}, "\ufeffx\n"),
        ("\ufeffa\r\nb\n", {"anchor_text": "b", "new_content": "x"}, "\ufeffa\r\nx\n"),
        ("a\nb\nc\n", {"anchor_text": "b", "new_content": "x"}, "a\nx\nc\n"),
        ("a\nb\nc\n", {"anchor_text": "b", "anchor_count": 2, "new_content": "x"}, "a\nx\n"),
        ("a\nb\nc\n", {"anchor_text": "a\nb", "new_content": "x"}, "x\nc\n"),
        ("a\nb\nc\n", {"anchor_text": "a\nb\n", "anchor_count": 1, "new_content": "x"}, "x\nb\nc\n"),
        ("a\r\nb\r\nc\r\n", {"anchor_text": "a\nb", "new_content": "x"}, "x\r\nc\r\n"),
        ("  if  x:\n y\n", {"anchor_text": "if x:", "new_content": "z"}, "z\n y\n"),
        ("  If  X:\n y\n", {"anchor_text": "if x:", "new_content": "z"}, "z\n y\n"),
        ("if x:\n  if x:\nIF X:\n", {"anchor_text": "if x:", "new_content": "z"}, "z\n  if x:\nIF X:\n"),
        ("IF X:\n  if x:\n", {"anchor_text": "if x:", "new_content": "z"}, "IF X:\nz\n"),
        ("a\nb\na\nc\n", {"anchor_text": "a\nc", "new_content": "z"}, "a\nb\nz\n"),
    ],
    ids=repr,
)
def test_lines_are_replaced(bench: Bench, before: str, arguments: dict[str, Any], after: str) -> None:
    (bench.root / "file").write_bytes(before.encode())
    result = bench.ok(TOOL, path="file", **arguments)
    assert (bench.root / "file").read_bytes().decode() == after
    assert set(result) == {"success", "path", "diff", "lines_replaced", "new_line_count"}


def test_the_result_tells_what_was_done(bench: Bench) -> None:
    (bench.root / "file").write_text("a\nb\nc\nd\n")
    assert bench.ok(TOOL, path="file", start_line=2, end_line=3, new_content=["x", "c", "z"]) == {
        "success": True,
        "path": "file",
        "diff": "--- a/file\n+++ b/file\n@@ -1,4 +1,5 @@\n a\n-b\n+x\n c\n+z\n d",
        "lines_replaced": 2,
        "new_line_count": 3,
    }


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({}, "give start_line and end_line, or anchor_text"),
        ({"start_line": 1}, "give start_line and end_line"),
        ({"end_line": 1}, "give start_line and end_line"),
        ({"start_line": 1, "end_line": 1, "anchor_text": "a"}, "not both"),
        ({"start_line": 1, "anchor_text": "a"}, "not both"),
        ({"start_line": 1, "end_line": 1, "anchor_count": 1}, "not both"),
        ({"anchor_count": 1}, "anchor_text"),
        ({"start_line": 3, "end_line": 2}, "end_line 2 is before start_line 3"),
        ({"start_line": 4, "end_line": 5}, "file has 4 lines, so there is no line 5"),
        ({"start_line": 9, "end_line": 10**9}, "no line 9"),
        ({"anchor_text": "c", "anchor_count": 10**12}, "4 lines"),
        ({"anchor_text": "a "}, "lines 1, 3"),
        ({"anchor_text": "b\nz"}, "The nearest lines are:\n2: b"),
        ({"anchor_text": "zebra"}, "Read the file again"),
        ({"anchor_text": " \n"}, "blank"),
        ({"anchor_text": ""}, "blank"),
        ({"anchor_text": "\0"}, "no whole line"),
        ({"anchor_text": "\ud800"}, "no whole line"),
        ({"anchor_text": "b", "new_content": "b"}, "already so"),
        ({"anchor_text": "b", "new_content": "x\0"}, "NUL"),
        ({"anchor_text": "b", "new_content": "x" * (11 << 20)}, "would grow"),
        ({"anchor_text": "b", "new_content": "🦀" * (3 << 20)}, "would grow"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_is_not_clear_changes_nothing(bench: Bench, arguments: dict[str, Any], part: str) -> None:
    (bench.root / "file").write_text("a\nb\na\nc\n")
    assert part in bench.refused(TOOL, path="file", **{"new_content": "x", **arguments})
    assert tree(bench.root) == {"file": b"a\nb\na\nc\n"}


def test_an_empty_file_has_no_lines(bench: Bench) -> None:
    (bench.root / "file").touch()
    assert "0 lines" in bench.refused(TOOL, path="file", start_line=1, end_line=1, new_content="x")


def test_numbers_of_a_file_that_changed_since_it_was_read_are_not_trusted(bench: Bench) -> None:
    path = bench.root / "file"
    path.write_text("a\nb\n")
    bench.ok("read_file", path="file")
    path.write_text("new\na\nb\n")
    assert "read it again" in bench.refused(TOOL, path="./file", start_line=2, end_line=2, new_content="x")
    bench.ok(TOOL, path="file", anchor_text="b", new_content="x")
    bench.ok(TOOL, path="file", start_line=1, end_line=1, new_content="y")
    bench.ok("write_file", path="file", content="done")


def test_lone_surrogates_become_valid_text(bench: Bench) -> None:
    (bench.root / "file").write_text("a\n")
    bench.ok(TOOL, path="file", start_line=1, end_line=1, new_content="x\ud800")
    assert (bench.root / "file").read_text() == "x?\n"


@pytest.mark.alone
@pytest.mark.parametrize("anchor", ["xxxxxxxxx", "xxxxxxxxx\n" * 1000, "XXXXXXXXX", "y"])
def test_a_hostile_file_takes_no_long_time(bench: Bench, anchor: str) -> None:
    (bench.root / "file").write_text("xxxxxxxxx\n" * 1_000_000)
    started = time.monotonic()
    bench.refused(TOOL, path="file", anchor_text=anchor, new_content="z")
    assert time.monotonic() - started < 6


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        (TOOL, {"start_line": 1, "end_line": 1, "new_content": "x"}),
        (TOOL, {"anchor_text": "last", "new_content": "x"}),
        ("edit_file", {"old_string": "last", "new_string": "x"}),
        ("insert_after", {"anchor_text": "last", "content": "x"}),
        ("append_file", {"content": "x"}),
    ],
)
def test_more_than_a_million_lines_are_too_many(bench: Bench, tool: str, arguments: dict[str, Any]) -> None:
    text = "\n" * 1_000_000 + "last"
    (bench.root / "file").write_text(f"{text}\n")
    assert "file has more than 1000000 lines" in bench.refused(tool, path="file", **arguments)
    assert (bench.root / "file").read_text() == f"{text}\n"
    (bench.root / "file").write_text(text)
    bench.ok(tool, path="file", **arguments)


def test_replace_all_in_a_million_lines_takes_no_long_time(make_bench: MakeBench) -> None:
    bench = make_bench("off", max_result_chars=100_000)
    text = ("aaaa bbbb\n" + "cccc dddd\n" * 9) * 100_000
    (bench.root / "file").write_text(text)
    started = time.monotonic()
    result = bench.ok("edit_file", path="file", old_string="aaaa bbbb", new_string="x\ny", replace_all=True)
    assert time.monotonic() - started < 6
    assert result["replacements"] == 100_000
    assert result["diff"].startswith("--- a/file\n+++ b/file\n@@ -1,")
    assert result["diff"].endswith("[… the rest of the diff is left out …]")
    assert (bench.root / "file").read_text() == text.replace("aaaa bbbb", "x\ny")


def test_replace_all_may_not_fill_the_memory(bench: Bench) -> None:
    (bench.root / "file").write_text("a" * (1 << 20))
    error = bench.refused("edit_file", path="file", old_string="a", new_string="b" * (1 << 20), replace_all=True)
    assert "more than 100000 times" in error
    (bench.root / "file").write_text("a" * 50_000)
    error = bench.refused("edit_file", path="file", old_string="a", new_string="b" * (1 << 20), replace_all=True)
    assert "would grow" in error


LINE = st.sampled_from(["a", "b", "", "\tc", "x\x0cy\u2028", "🦀"])
TEXT = st.lists(st.tuples(LINE, st.sampled_from(["\n", "\r\n"])), min_size=1, max_size=9)


@needs_git
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(lines=TEXT, final=st.booleans(), new=st.lists(LINE, max_size=4), data=st.data())
def test_other_lines_stay_as_they_are_and_the_diff_is_true(
    bench: Bench, tmp_path: Path, lines: list[tuple[str, str]], final: bool, new: list[str], data: st.DataObject
) -> None:
    whole = [text + end for text, end in lines]
    if not final:
        whole[-1] = whole[-1].rstrip("\r\n") or "z"
    first = data.draw(st.integers(1, len(whole)))
    last = data.draw(st.integers(first, len(whole)))
    before = "".join(whole)
    (bench.root / "file.txt").write_bytes(before.encode())
    bench.context.seen.clear()
    outcome = bench.call(TOOL, path="file.txt", start_line=first, end_line=last, new_content=new)
    after = (bench.root / "file.txt").read_bytes().decode()
    head, tail = "".join(whole[: first - 1]), "".join(whole[last:])
    assert after.startswith(head)
    assert after.endswith(tail)
    middle = after[len(head) : len(after) - len(tail)]
    assert [line.removesuffix("\r") for line in middle.split("\n")][: len(new)] == new or not new
    if outcome.success:
        folder = tmp_path / "applied"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        assert apply(outcome.content["diff"] + "\n", before, folder) == after
    else:
        assert after == before
