"""`insert_after`: behind a line, or behind the block that it opens."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.tools.conftest import Bench, tree

TOOL = "insert_after"


@pytest.mark.parametrize(
    ("before", "anchor", "content", "after"),
    [
        ("a\nb\n", "a", "x", "a\nx\nb\n"),
        ("a\nb\n", "a", "x\n", "a\nx\nb\n"),
        ("\ufeffa\nb\n", "a", "x", "\ufeffa\nx\nb\n"),
        ("a\nb\n", "b", "x\ny", "a\nb\nx\ny\n"),
        ("a\nb", "b", "x\n", "a\nb\nx"),
        ("a", "a", ["x", ""], "a\nx\n"),
        ("a\r\nb\r\n", "a", "x\ny", "a\r\nx\r\ny\r\nb\r\n"),
        ("a\r\nb", "b", "x", "a\r\nb\r\nx"),
        ("a\nb\r\nc\n", "b", "x", "a\nb\r\nx\r\nc\n"),
        ("a\nb\nc\n", "a\nb", "x", "a\nb\nx\nc\n"),
        ("  A  b\n", "a b", "x", "  A  b\nx\n"),
        ("a\nb\n", "a", "\n", "a\n\nb\n"),
    ],
    ids=repr,
)
def test_lines_come_behind_the_anchor(bench: Bench, before: str, anchor: str, content: Any, after: str) -> None:
    (bench.root / "file").write_bytes(before.encode())
    result = bench.ok(TOOL, path="file", anchor_text=anchor, content=content)
    assert (bench.root / "file").read_bytes().decode() == after
    assert result["block_skipped"] is False


def test_the_result_tells_where(bench: Bench) -> None:
    (bench.root / "a.c").write_text("int f() {\n  g();\n}\nint h;\n")
    assert bench.ok(TOOL, path="a.c", anchor_text="int f() {", content="int x;") == {
        "success": True,
        "path": "a.c",
        "diff": "--- a/a.c\n+++ b/a.c\n@@ -1,4 +1,5 @@\n int f() {\n   g();\n }\n+int x;\n int h;",
        "anchor_line": 1,
        "inserted_after_line": 3,
        "block_skipped": True,
        "lines_inserted": 1,
    }


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.c", "f {\n}\n", 2),
        ("a.c", "f {  \n  { }\n  {\n  }\n}\n", 5),
        ("a.c", 'f {\n  "}";\n}\n', 3),
        ("a.c", 'f {\n  "\\"}";\n}\n', 3),
        ("a.c", "f {\n  '}';\n}\n", 3),
        ("a.c", "f {\n  // }\n}\n", 3),
        ("a.c", "f {\n  /* }\n } */\n}\n", 4),
        ("a.js", "f {\n  `}\n${x}`;\n}\n", 4),
        ("a.js", 'f {\n  "http://x/{";\n});\n', 3),
        ("a.sh", "f {\n  # }\n  ${x//a/b}\n}\n", 4),
        ("a.py", 'f {\n """\n }\n """\n}\n', 5),
        ("a.rs", "f {\n  impl<'a> Foo<'a> {\n  }\n}\n", 4),
        ("a.rs", "f {\n  let c = '{'; let d = '\\'';\n}\n", 3),
        ("a.rs", 'f {\n  r#"}" "#;\n}\n', 3),
        ("a.c", "f {\n} else {\n}\n", 3),
        ("a.c", "f {\n  /* never closed }\n}\n", 2),
        ("a.c", "f {\n", 1),
        ("a.c", "f {\n  {\n}\n", 1),
        ("a.c", "f {\r\n}\r\n", 2),
    ],
    ids=repr,
)
def test_a_block_is_passed(bench: Bench, name: str, text: str, line: int) -> None:
    text += "end\n"
    (bench.root / name).write_bytes(text.encode())
    result = bench.ok(TOOL, path=name, anchor_text="f {", content="NEW")
    assert result["inserted_after_line"] == line
    assert result["block_skipped"] is (line > 1)
    assert (bench.root / name).read_text().split("\n").index("NEW") == line


@pytest.mark.parametrize("anchor", ["// f {", 'x = "f {'])
def test_a_brace_that_is_no_code_opens_no_block(bench: Bench, anchor: str) -> None:
    (bench.root / "file").write_text(f"{anchor}\n}}\n")
    assert bench.ok(TOOL, path="file", anchor_text=anchor, content="x")["inserted_after_line"] == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"anchor_text": "b"}, "on lines 2, 3"),
        ({"anchor_text": "zebra"}, "Read the file again"),
        ({"anchor_text": ""}, "blank"),
        ({"content": ""}, "content is empty"),
        ({"content": []}, "content is empty"),
        ({"content": "\0"}, "NUL"),
        ({"path": "no"}, "does not exist"),
    ],
    ids=repr,
)
def test_what_is_not_clear_changes_nothing(bench: Bench, arguments: dict[str, Any], part: str) -> None:
    (bench.root / "file").write_text("a\nb\nb\n")
    assert part in bench.refused(TOOL, **{"path": "file", "anchor_text": "a", "content": "x", **arguments})
    assert tree(bench.root) == {"file": b"a\nb\nb\n"}


@pytest.mark.parametrize("junk", ["{", '"', "'", "/*", "`", '\\"', '"""', "} else {\n"])
def test_hostile_braces_take_no_long_time(bench: Bench, junk: str) -> None:
    (bench.root / "file").write_text("f {\n" + junk * (3_000_000 // len(junk)))
    started = time.process_time()  # of all threads: how busy the machine is says nothing
    bench.ok(TOOL, path="file", anchor_text="f {", content="x")
    assert time.process_time() - started < 8
