"""`read_file`, `write_file` and `list_directory`: what the model sees of files, and what it may overwrite."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.tools.conftest import Bench, MakeBench, as_nobody, needs_root, tree

TEXT_TOOLS: dict[str, dict[str, Any]] = {
    "read_file": {},
    "edit_file": {"old_string": "t", "new_string": "u"},
    "edit_file_lines": {"start_line": 1, "end_line": 1, "new_content": "u"},
    "insert_after": {"anchor_text": "t", "content": "u"},
    "append_file": {"content": "u"},
    "ast_grep": {"action": "search", "pattern": "t", "lang": "python"},
}


def numbered(result: dict[str, Any]) -> list[tuple[int, str]]:
    """(line number, text) of each line of a result."""
    lines = [line.split("\t", 1) for line in result["content"].split("\n")] if result["content"] else []
    return [(int(number), text) for number, text in lines]


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"one", ["one"]),
        (b"one\n", ["one"]),
        (b"one\n\n", ["one", ""]),
        (b"one\ntwo", ["one", "two"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"\ttab\n", ["\ttab"]),
        ("näïve 🦀\n".encode(), ["näïve 🦀"]),
        (b"page\x0cbreak\n", ["page\x0cbreak"]),
        ("line\u2028separator\x85next\x1cfile\n".encode(), ["line\u2028separator\x85next\x1cfile"]),
        (b"\xef\xbb\xbfmark\n", ["\ufeffmark"]),
    ],
    ids=repr,
)
def test_a_file_is_shown_with_numbered_lines(bench: Bench, data: bytes, lines: list[str]) -> None:
    (bench.root / "file").write_bytes(data)
    result = bench.ok("read_file", path="file")
    assert numbered(result) == list(enumerate(lines, 1))
    assert result["total_lines"] == result["lines_shown"] == len(lines)
    assert result["path"] == "file"
    assert result["offset"] == 0
    assert "warning" not in result


def test_lines_are_counted_as_grep_counts_them(bench: Bench) -> None:
    text = "one\x0ctwo\nthree\u2028four\nfive\rsix\nneedle\n"
    (bench.root / "file").write_text(text, newline="")
    shown = dict(numbered(bench.ok("read_file", path="file")))
    assert shown[4] == "needle"
    assert bench.ok("grep_search", pattern="needle")["results"] == ["file:4:needle"]


@pytest.mark.parametrize(
    ("offset", "limit", "first", "count", "warning"),
    [
        (0, 3, 1, 3, "7 more lines: go on with offset=3"),
        (3, 3, 4, 3, "4 more lines: go on with offset=6"),
        (7, 3, 8, 3, None),
        (9, 100, 10, 1, None),
        (0, 10, 1, 10, None),
        (10, 5, None, 0, None),
        (11, 5, None, 0, "the file has only 10 lines"),
        (10**9, 5, None, 0, "the file has only 10 lines"),
    ],
)
def test_a_part_is_read_by_offset_and_limit(
    bench: Bench, offset: int, limit: int, first: int | None, count: int, warning: str | None
) -> None:
    (bench.root / "file").write_text("".join(f"line {number}\n" for number in range(1, 11)))
    result = bench.ok("read_file", path="file", offset=offset, limit=limit)
    assert numbered(result) == [(number, f"line {number}") for number in range(first or 0, (first or 0) + count)]
    assert result["lines_shown"] == count
    assert result["total_lines"] == 10
    assert result.get("warning") == warning


LONG_FILES = {
    "plain": [f"line {number} {'x' * (number % 90)}" for number in range(3000)],
    "quotes": ['"\\"' * (number % 60) for number in range(1500)],
    "tabs": ["\t" * (number % 100) + "x" for number in range(1000)],
    "control characters": ["\x01\x1b" * (number % 40) for number in range(500)],
    "cyrillic": ["слово " * (number % 30) for number in range(800)],
    "emoji": ["🦀" * (number % 70) for number in range(800)],
    "long lines": ["y" * 1900 for _ in range(30)],
}


@pytest.mark.parametrize("lines", LONG_FILES.values(), ids=LONG_FILES)
@pytest.mark.parametrize("max_result_chars", [4000, 8000])
def test_following_the_warnings_reads_the_whole_file(
    make_bench: MakeBench, lines: list[str], max_result_chars: int
) -> None:
    bench = make_bench("off", max_result_chars=max_result_chars)
    (bench.root / "file").write_text("".join(f"{line}\n" for line in lines))
    offset, found, calls = 0, [], 0
    while True:
        outcome = bench.call("read_file", path="file", offset=offset)
        calls += 1
        assert len(outcome.text.encode()) <= max_result_chars
        shown = numbered(outcome.content)
        assert [number for number, _ in shown] == list(range(offset + 1, offset + 1 + len(shown)))
        found += [text for _, text in shown]
        if "warning" not in outcome.content:
            break
        left, offset = map(int, re.findall(r"\d+", outcome.content["warning"]))
        assert left == len(lines) - len(found)
    assert found == lines
    size = sum(len(msgspec.json.encode(line)) for line in lines)
    assert calls < 8 + 6 * size / max_result_chars, "the parts are needlessly small"


def test_a_very_long_line_is_cut_and_marked(bench: Bench) -> None:
    (bench.root / "file").write_text("x" * 2000 + "\n" + "y" * 2001 + "\nend\n")
    shown = dict(numbered(bench.ok("read_file", path="file")))
    assert shown == {1: "x" * 2000, 2: "y" * 2000 + "…", 3: "end"}


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"\x7fELF\0\0", "binary"),
        (b"text\0", "binary"),
        ("café\n".encode("latin-1"), "not UTF-8 text (byte 3)"),
        ("text".encode("utf-16"), "binary"),
        (b"\xed\xa0\x80", "not UTF-8"),
    ],
)
@pytest.mark.parametrize("tool", TEXT_TOOLS)
def test_what_is_no_utf8_text_is_refused(bench: Bench, tool: str, data: bytes, part: str) -> None:
    (bench.root / "file").write_bytes(data)
    assert part in bench.refused(tool, path="file", **TEXT_TOOLS[tool])
    assert (bench.root / "file").read_bytes() == data


@pytest.mark.parametrize("tool", TEXT_TOOLS)
def test_a_file_of_200_megabytes_is_refused_at_once(bench: Bench, tool: str) -> None:
    with (bench.root / "big.py").open("wb") as file:
        file.truncate(200 * 1024 * 1024)
    started = time.monotonic()
    assert "more than 10485760" in bench.refused(tool, path="big.py", **TEXT_TOOLS[tool])
    assert time.monotonic() - started < 1
    assert (bench.root / "big.py").stat().st_size == 200 * 1024 * 1024


def test_a_missing_file_is_a_clear_error(bench: Bench) -> None:
    assert bench.refused("read_file", path="no/such.txt") == "no/such.txt does not exist"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "plain\n",
        "no newline",
        "näïve 🦀\n",
        "a\r\nb\r\n",
        'tab\t"quotes" \\ $HOME `x`\n',
        "\ufeffmark",
        "a\n" * 100_000,
    ],
)
def test_a_new_file_holds_exactly_what_was_written(bench: Bench, content: str) -> None:
    result = bench.ok("write_file", path="new/file.txt", content=content)
    assert (bench.root / "new" / "file.txt").read_bytes() == content.encode()
    assert result == {
        "success": True,
        "path": "new/file.txt",
        "bytes_written": len(content.encode()),
        "lines": len(content.replace("\r\n", "\n").split("\n")) - (not content or content.endswith("\n")),
        "created": True,
    }


def test_a_new_file_gets_the_usual_mode(bench: Bench) -> None:
    previous = os.umask(0o027)
    try:
        bench.ok("write_file", path="file", content="x")
    finally:
        os.umask(previous)
    assert (bench.root / "file").stat().st_mode & 0o777 == 0o640


def test_a_file_may_be_overwritten_unread_and_again_and_again(bench: Bench) -> None:
    (bench.root / "file").write_text("old")
    assert bench.ok("write_file", path="file", content="new")["created"] is False
    assert bench.ok("write_file", path="file", content="newer")["created"] is False
    assert (bench.root / "file").read_text() == "newer"


SAME_FILE = [
    ("file", "file"),
    ("./file", "file"),
    ("{root}/file", "file"),
    ("sub/../file", "{root}/file"),
    ("link", "file"),
]


@pytest.mark.parametrize(("read", "written"), SAME_FILE)
def test_a_file_that_changed_since_it_was_read_is_not_overwritten(bench: Bench, read: str, written: str) -> None:
    path = bench.root / "file"
    path.write_text("read\n")
    (bench.root / "sub").mkdir()
    (bench.root / "link").symlink_to("file")
    bench.ok("read_file", path=read.format(root=bench.root))
    path.write_text("somebody's work\n")
    written = written.format(root=bench.root)
    error = bench.refused("write_file", path=written, content="mine\n")
    assert "changed on disk" in error
    assert path.read_text() == "somebody's work\n"
    bench.ok("read_file", path="file")
    bench.ok("write_file", path=written, content="mine\n")
    assert path.read_text() == "mine\n"


@pytest.mark.parametrize("tool", ["write_file", "edit_file"])
def test_a_file_that_changed_since_it_was_written_is_not_overwritten(bench: Bench, tool: str) -> None:
    path = bench.root / "file"
    bench.ok("write_file", path="file", content="mine\n")
    if tool == "edit_file":
        bench.ok("edit_file", path="file", old_string="mine", new_string="edited")
    path.write_text("theirs\n")
    assert "changed on disk" in bench.refused("write_file", path="./file", content="mine again\n")
    assert path.read_text() == "theirs\n"


def test_a_file_that_was_removed_since_it_was_read_may_be_written_again(bench: Bench) -> None:
    (bench.root / "file").write_text("old")
    bench.ok("read_file", path="file")
    (bench.root / "file").unlink()
    assert bench.ok("write_file", path="file", content="new")["created"] is True


def test_what_one_session_read_does_not_bind_another(make_bench: MakeBench) -> None:
    one, other = make_bench("off", session_id="one"), make_bench("off", session_id="other")
    (one.root / "file").write_text("old")
    one.ok("read_file", path="file")
    other.ok("write_file", path="file", content="other's")
    assert "changed on disk" in one.refused("write_file", path="file", content="one's")
    assert (one.root / "file").read_text() == "other's"


@pytest.fixture
def wood(bench: Bench) -> Bench:
    """A small tree with a bit of everything."""
    for name in ("b/inner/deep/leaf.txt", "b/x.txt", "a.txt", ".hidden", "z.txt", ".git/objects/ab"):
        path = bench.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (bench.root / "to-file").symlink_to("a.txt")
    (bench.root / "to-folder").symlink_to("b")
    (bench.root / "to-nowhere").symlink_to("/no/such")
    return bench


def paths(result: dict[str, Any]) -> list[str]:
    return [entry["path"] for entry in result["entries"]]


def test_a_folder_is_listed_folders_first_with_sizes_and_links(wood: Bench) -> None:
    result = wood.ok("list_directory")
    assert paths(result) == [".git", "b", ".hidden", "a.txt", "to-file", "to-folder", "to-nowhere", "z.txt"]
    entries = {entry["name"]: entry for entry in result["entries"]}
    assert entries["a.txt"] == {"name": "a.txt", "path": "a.txt", "is_dir": False, "size": 5}
    assert entries["b"]["is_dir"] is True
    assert [name for name, entry in entries.items() if entry.get("link")] == ["to-file", "to-folder", "to-nowhere"]
    assert entries["to-folder"]["is_dir"] is False
    assert result["count"] == 8
    assert result["path"] == "."
    assert "warning" not in result


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"path": "b"}, ["b/inner", "b/x.txt"]),
        ({"path": "b/"}, ["b/inner", "b/x.txt"]),
        ({"path": "./b"}, ["b/inner", "b/x.txt"]),
        ({"path": "{root}/b"}, ["b/inner", "b/x.txt"]),
        ({"path": "b", "max_depth": 5}, ["b/inner", "b/x.txt"]),
        ({"path": "b", "recursive": True, "max_depth": 1}, ["b/inner", "b/x.txt"]),
        ({"path": "b", "recursive": True, "max_depth": 2}, ["b/inner", "b/inner/deep", "b/x.txt"]),
        ({"path": "b", "recursive": True}, ["b/inner", "b/inner/deep", "b/inner/deep/leaf.txt", "b/x.txt"]),
        ({"path": "b/inner/deep"}, ["b/inner/deep/leaf.txt"]),
    ],
    ids=repr,
)
def test_the_depth_of_a_listing(wood: Bench, arguments: dict[str, Any], found: list[str]) -> None:
    arguments["path"] = arguments["path"].format(root=wood.root)
    assert [os.path.normpath(path) for path in paths(wood.ok("list_directory", **arguments))] == found


def test_a_recursive_listing_enters_neither_links_nor_the_folder_of_git(wood: Bench) -> None:
    found = paths(wood.ok("list_directory", recursive=True, max_depth=20))
    assert [path for path in found if path.startswith((".git/", "to-folder/"))] == []
    assert "b/inner/deep/leaf.txt" in found


@pytest.mark.parametrize(("path", "part"), [("a.txt", "a.txt"), ("no", "does not exist"), ("to-nowhere", "to-nowhere")])
def test_what_is_no_folder_is_not_listed(wood: Bench, path: str, part: str) -> None:
    assert part in wood.refused("list_directory", path=path)


@pytest.mark.parametrize("depth", [0, 21, -1])
def test_the_depth_has_bounds(wood: Bench, depth: int) -> None:
    with pytest.raises(Exception, match="max_depth"):
        wood.call("list_directory", recursive=True, max_depth=depth)


def test_an_empty_folder(bench: Bench) -> None:
    assert bench.ok("list_directory") == {"path": ".", "entries": [], "count": 0}


def test_a_huge_folder_is_capped_and_says_so(make_bench: MakeBench) -> None:
    bench = make_bench("off", max_result_chars=10**6)
    for number in range(1100):
        (bench.root / f"{number:04d}").touch()
    result = bench.ok("list_directory")
    assert result["count"] == 1000
    assert paths(result) == [f"{number:04d}" for number in range(1000)]
    assert "1000" in result["warning"]


def test_exactly_as_many_entries_as_fit_need_no_warning(make_bench: MakeBench) -> None:
    bench = make_bench("off", max_result_chars=10**6)
    for number in range(1000):
        (bench.root / f"{number:04d}").touch()
    result = bench.ok("list_directory")
    assert result["count"] == 1000
    assert "warning" not in result


def test_a_name_that_is_no_unicode_is_shown_and_breaks_nothing(bench: Bench) -> None:
    folder = bench.root / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.txt")).write_text("x")
    result = bench.ok("list_directory", recursive=True)
    assert paths(result) == ["caf?", "caf?/?.txt"]
    assert [entry["name"] for entry in result["entries"]] == ["caf?", "?.txt"]


def test_a_folder_that_cannot_be_entered_does_not_spoil_the_listing(bench: Bench, tmp_path: Path) -> None:
    """Deeper than a path may be long: each folder is opened from the one above."""
    folder = os.open(bench.root, os.O_RDONLY)
    for _ in range(18):
        os.mkdir("d" * 250, dir_fd=folder)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    outcome = bench.call("list_directory", recursive=True, max_depth=20)
    assert outcome.success
    assert len(outcome.text) < 9000


@needs_root
def test_a_folder_that_may_be_read_and_not_entered_shows_its_names(bench: Bench) -> None:
    (bench.root / "half" / "inner").mkdir(parents=True)
    (bench.root / "half" / "file").write_text("x")
    (bench.root / "shut").mkdir(mode=0o700)
    (bench.root / "z.txt").write_text("x")
    (bench.root / "half").chmod(0o744)
    with as_nobody():
        result = bench.ok("list_directory", recursive=True)
        inside = bench.ok("list_directory", path="half")
    assert paths(result) == ["half", "half/inner", "half/file", "shut", "z.txt"]
    assert result["entries"][1] == {"name": "inner", "path": "half/inner", "is_dir": True}
    assert result["entries"][2] == {"name": "file", "path": "half/file", "is_dir": False}
    assert paths(inside) == ["half/inner", "half/file"]


def test_reading_writes_nothing(wood: Bench) -> None:
    before = tree(wood.root)
    wood.ok("read_file", path="a.txt")
    wood.ok("list_directory", recursive=True)
    assert tree(wood.root) == before
