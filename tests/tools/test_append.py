"""`append_file`: at the end, on lines of their own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tools.conftest import Bench, tree

TOOL = "append_file"


@pytest.mark.parametrize(
    ("before", "content", "after", "lines", "total"),
    [
        (None, "x", "x\n", 1, 1),
        (None, "x\r\ny", "x\r\ny\r\n", 2, 2),
        ("", "x\n", "x\n", 1, 1),
        ("\ufeff", "x\n", "\ufeffx\n", 1, 1),
        ("\ufeffa", "x\n", "\ufeffa\nx\n", 1, 2),
        ("a\n", "x\n", "a\nx\n", 1, 2),
        ("a\n", "x", "a\nx\n", 1, 2),
        ("a", "x\n", "a\nx\n", 1, 2),
        ("a", "x", "a\nx", 1, 2),
        ("a\r\n", "x\ny\n", "a\r\nx\r\ny\r\n", 2, 3),
        ("a\nb\r\n", "x", "a\nb\r\nx\r\n", 1, 3),
        ("a\r\nb", "x\n", "a\r\nb\r\nx\r\n", 1, 3),
        ("a\n", "\n", "a\n\n", 1, 2),
        ("a\n", ["x", "y"], "a\nx\ny\n", 2, 3),
        ("ä\n", "🦀\ud800", "ä\n🦀?\n", 1, 2),
    ],
    ids=repr,
)
def test_lines_come_at_the_end(
    bench: Bench, before: str | None, content: Any, after: str, lines: int, total: int
) -> None:
    path = bench.root / "new" / "file"
    if before is not None:
        path.parent.mkdir()
        path.write_bytes(before.encode())
    result = bench.ok(TOOL, path="new/file", content=content)
    assert path.read_bytes().decode() == after
    assert (result["lines_appended"], result["total_lines"]) == (lines, total)
    assert result["diff"].startswith("--- a/new/file\n+++ b/new/file\n@@ ")


@pytest.mark.parametrize(
    ("content", "part"), [("", "empty"), ([], "empty"), ("a\0", "NUL"), ("x" * (11 << 20), "grow")]
)
def test_bad_content_makes_no_file(bench: Bench, content: Any, part: str) -> None:
    assert part in bench.refused(TOOL, path="file", content=content)
    assert tree(bench.root) == {}


def test_appends_follow_each_other_and_a_write_may_follow(bench: Bench) -> None:
    for number in range(3):
        bench.ok(TOOL, path="file", content=f"{number}")
    assert (bench.root / "file").read_text() == "0\n1\n2\n"
    bench.ok("write_file", path="file", content="done")


def test_a_dangling_link_is_refused(bench: Bench) -> None:
    (bench.root / "link").symlink_to("nowhere")
    assert "link" in bench.refused(TOOL, path="link", content="x")
    assert tree(bench.root) == {}
