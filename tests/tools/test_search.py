"""`glob_search` and `grep_search`: ripgrep and the walk without it give the same answers in the same shape."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pawand.tools import places
from tests.tools.conftest import (
    Bench,
    Hide,
    MakeBench,
    needs_bwrap,
    needs_git,
    needs_rg,
    needs_root,
    reached,
    running_in,
)

NOTE = "ripgrep is not installed"
Both = Callable[..., dict[str, Any]]


@pytest.fixture(params=[pytest.param("rg", marks=needs_rg), "walk"])
def engine(request: pytest.FixtureRequest, bench: Bench, hide: Hide) -> Bench:
    if request.param == "walk":
        hide("rg")
    return bench


@pytest.fixture
def both(bench: Bench, path_without: Callable[[str], str]) -> Both:
    """`both(tool, …)`: the result that ripgrep and the walk agree on, without the walk's note."""

    def call(tool: str, **arguments: Any) -> dict[str, Any]:
        fast = bench.ok(tool, **arguments)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", path_without("rg"))
            slow = bench.ok(tool, **arguments)
        assert NOTE in slow.pop("note")
        assert "note" not in fast
        assert fast == slow
        return fast

    return call


def plant(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


FILES = {
    "main.py": "import os\n\nprint('needle')\n",
    "a-first.py": "needle\n",
    "a/second.py": "no\nneedle here\nneedle again\n",
    "a.py": "needle\n",
    "src/app.ts": "const needle = 1\n",
    "src/app.tsx": "needle\n",
    "src/deep/er/app.ts": "needle\n",
    "src/deep/notes.md": "Needle\n",
    "docs/[slug].md": "needle\n",
    "build/out.py": "needle\n",
    "src/build/out.py": "needle\n",
    "debug.log": "needle\n",
    "src/debug.log": "needle\n",
    "src/keep.log": "needle\n",
    "src/deep/keep.log": "needle\n",
    "only/here.txt": "needle\n",
    "only/deep/here.txt": "needle\n",
    "secret.txt": "needle\n",
    ".hidden": "needle\n",
    ".github/ci.yml": "needle\n",
    ".git/config": "needle\n",
    ".gitignore": "*.log\nbuild/\n/only/here.txt\n# a comment\n\nsecret.*\n",
    "src/.gitignore": "!keep.log\n",
    "src/deep/er/.gitignore": "*.js\n",
    "src/deep/er/app.js": "needle\n",
    "empty": "",
}
SEEN = [
    "a/second.py",
    "a-first.py",
    "a.py",
    "docs/[slug].md",
    "empty",
    "main.py",
    "only/deep/here.txt",
    "src/app.ts",
    "src/app.tsx",
    "src/deep/er/app.ts",
    "src/deep/keep.log",
    "src/deep/notes.md",
    "src/keep.log",
]


@pytest.fixture
def wood(root: Path) -> Path:
    plant(root, FILES)
    return root


@needs_rg
@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*", SEEN),
        ("**", SEEN),
        ("**/*", SEEN),
        ("*.py", ["a/second.py", "a-first.py", "a.py", "main.py"]),
        ("**/*.py", ["a/second.py", "a-first.py", "a.py", "main.py"]),
        ("/*.py", ["a-first.py", "a.py", "main.py"]),
        ("./*.py", ["a-first.py", "a.py", "main.py"]),
        ("*.{ts,tsx}", ["src/app.ts", "src/app.tsx", "src/deep/er/app.ts"]),
        ("src/*.ts", ["src/app.ts"]),
        ("src/*", ["src/app.ts", "src/app.tsx", "src/keep.log"]),
        ("src/**/*.ts", ["src/app.ts", "src/deep/er/app.ts"]),
        (
            "src/**",
            [
                "src/app.ts",
                "src/app.tsx",
                "src/deep/er/app.ts",
                "src/deep/keep.log",
                "src/deep/notes.md",
                "src/keep.log",
            ],
        ),
        ("**/deep/*", ["only/deep/here.txt", "src/deep/keep.log", "src/deep/notes.md"]),
        ("*.log", ["src/deep/keep.log", "src/keep.log"]),
        ("app.ts?", ["src/app.tsx"]),
        ("[am]*.py", ["a-first.py", "a.py", "main.py"]),
        ("[!am]*.py", ["a/second.py"]),
        ("{main,a}.py", ["a.py", "main.py"]),
        ("src", []),
        ("*.PY", []),
        (".*", []),
        (".hidden", []),
        (".git/**", []),
        ("build/**", []),
        ("no-such-*", []),
    ],
)
def test_glob(both: Both, wood: Path, pattern: str, found: list[str]) -> None:
    assert both("glob_search", pattern=pattern) == {"files": found, "count": len(found)}


@needs_rg
@pytest.mark.parametrize(
    ("path", "pattern", "found"),
    [
        ("src", "*.ts", ["src/app.ts", "src/deep/er/app.ts"]),
        ("src/", "*.ts", ["src/app.ts", "src/deep/er/app.ts"]),
        ("./src/deep/..", "*.ts", ["src/app.ts", "src/deep/er/app.ts"]),
        ("{root}/src", "*.ts", ["src/app.ts", "src/deep/er/app.ts"]),
        ("src", "*.log", ["src/deep/keep.log", "src/keep.log"]),
        ("src/deep", "*.log", ["src/deep/keep.log"]),
        ("src", "out.py", []),
        ("only", "*", ["only/deep/here.txt"]),
        ("only/deep", "*", ["only/deep/here.txt"]),
        ("src/deep/er", "*", ["src/deep/er/app.ts"]),
        ("src", "deep/*.md", ["src/deep/notes.md"]),
        ("src", "src/deep/*.md", ["src/deep/notes.md"]),
        ("build", "*", ["build/out.py"]),
        (".github", "*", [".github/ci.yml"]),
    ],
)
def test_glob_below_a_folder(both: Both, wood: Path, path: str, pattern: str, found: list[str]) -> None:
    path = path.format(root=wood)
    assert both("glob_search", pattern=pattern, path=path) == {"files": found, "count": len(found)}


@needs_rg
@pytest.mark.parametrize(
    ("arguments", "results"),
    [
        (
            {"pattern": "needle"},
            [
                "a/second.py:2:needle here",
                "a/second.py:3:needle again",
                "a-first.py:1:needle",
                "a.py:1:needle",
                "docs/[slug].md:1:needle",
                "main.py:3:print('needle')",
                "only/deep/here.txt:1:needle",
                "src/app.ts:1:const needle = 1",
                "src/app.tsx:1:needle",
                "src/deep/er/app.ts:1:needle",
                "src/deep/keep.log:1:needle",
                "src/keep.log:1:needle",
            ],
        ),
        ({"pattern": "needle", "include": "*.log"}, ["src/deep/keep.log:1:needle", "src/keep.log:1:needle"]),
        (
            {"pattern": "needle", "include": "*.{ts,tsx}", "path": "src"},
            ["src/app.ts:1:const needle = 1", "src/app.tsx:1:needle", "src/deep/er/app.ts:1:needle"],
        ),
        ({"pattern": "needle", "include": "src/*.ts"}, ["src/app.ts:1:const needle = 1"]),
        (
            {"pattern": "needle", "include": "*", "path": "src/deep"},
            ["src/deep/er/app.ts:1:needle", "src/deep/keep.log:1:needle"],
        ),
        ({"pattern": "needle", "include": "**", "path": "docs"}, ["docs/[slug].md:1:needle"]),
        ({"pattern": "(?i)^needle$", "include": "*.md"}, ["docs/[slug].md:1:needle", "src/deep/notes.md:1:Needle"]),
        ({"pattern": r"^import \w+$"}, ["main.py:1:import os"]),
        ({"pattern": "^$"}, ["main.py:2:"]),
        ({"pattern": "needle", "path": "main.py"}, ["main.py:3:print('needle')"]),
        ({"pattern": "needle", "path": "./a/../main.py"}, ["main.py:3:print('needle')"]),
        ({"pattern": "needle", "path": "{root}/main.py"}, ["main.py:3:print('needle')"]),
        ({"pattern": "needle", "path": "debug.log"}, ["debug.log:1:needle"]),
        ({"pattern": "needle", "path": ".hidden"}, [".hidden:1:needle"]),
        ({"pattern": "needle", "path": "build"}, ["build/out.py:1:needle"]),
        ({"pattern": "-e", "path": "main.py"}, []),
        ({"pattern": "--files"}, []),
        ({"pattern": "no such text"}, []),
    ],
    ids=repr,
)
def test_grep(both: Both, wood: Path, arguments: dict[str, Any], results: list[str]) -> None:
    if "path" in arguments:
        arguments["path"] = arguments["path"].format(root=wood)
    assert both("grep_search", **arguments) == {"results": results, "count": len(results)}


@needs_rg
def test_odd_files(both: Both, root: Path) -> None:
    (root / "binary").write_bytes(b"needle\0")
    (root / "latin").write_bytes(b"needle caf\xe9\n")
    (root / "dos").write_bytes(b"one\r\nneedle\r\n")
    (root / "controls").write_bytes("needle\x0cform\u2028feed\rend\nneedle\n".encode())
    (root / "mark").write_bytes(b"\xef\xbb\xbfneedle\n")
    (root / "long").write_text("needle" + "x" * 1000 + "\n")
    (root / "link").symlink_to("latin")
    result = both("grep_search", pattern="^needle")["results"]
    assert result == [
        "controls:1:needle\x0cform\u2028feed\rend",
        "controls:2:needle",
        "dos:2:needle",
        "latin:1:needle caf\ufffd",
        "long:1:needle" + "x" * 394 + " [... omitted end of long line]",
        "mark:1:needle",
    ]
    assert both("grep_search", pattern="needle$")["results"] == ["controls:2:needle", "dos:2:needle", "mark:1:needle"]
    assert both("grep_search", pattern="needle", path="binary")["results"] == []
    assert both("grep_search", pattern="needle", path="link")["results"] == ["latin:1:needle caf\ufffd"]
    (root / "name:1:with\nnewline").touch()
    assert both("glob_search", pattern="*") == {
        "files": ["binary", "controls", "dos", "latin", "long", "mark", "name:1:with\nnewline"],
        "count": 7,
    }


@needs_rg
def test_a_line_with_marks_without_end_is_cut(bench: Bench, root: Path) -> None:
    """To ripgrep they are one column, so that it shows them all."""
    (root / "long").write_text("needle" + "\u0301" * 10_000_000 + "\nneedle\n")
    tracemalloc.start()
    try:
        result = bench.ok("grep_search", pattern="needle")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    first, second = result["results"]
    assert first.startswith("long:1:needle\u0301\u0301")
    assert second == "long:2:needle"
    assert result["count"] == 2
    assert most < 5_000_000


@needs_rg
def test_names_that_are_no_unicode(both: Both, root: Path) -> None:
    folder = root / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.py")).write_text("needle\n")
    assert both("glob_search", pattern="*.py")["files"] == ["caf\ufffd/\ufffd.py"]
    assert both("grep_search", pattern="needle")["results"] == ["caf\ufffd/\ufffd.py:1:needle"]


@needs_rg
def test_gitignore_counts_in_a_repository_and_outside_one(both: Both, root: Path) -> None:
    plant(root, {".gitignore": "*.log\n", "a.log": "x\n", "a.txt": "x\n"})
    assert both("glob_search", pattern="*")["files"] == ["a.txt"]
    (root / ".git").mkdir()
    assert both("glob_search", pattern="*")["files"] == ["a.txt"]
    assert both("grep_search", pattern="x")["results"] == ["a.txt:1:x"]


def test_a_fifo_for_a_gitignore_does_not_stop_the_walk(bench: Bench, hide: Hide) -> None:
    hide("rg")
    os.mkfifo(bench.root / ".gitignore")
    (bench.root / "kept.py").touch()
    assert bench.ok("glob_search", pattern="*")["files"] == ["kept.py"]


@pytest.mark.parametrize("kind", ["dangling link", "link out", "folder", "binary", "bad patterns"])
def test_a_strange_gitignore_breaks_nothing(engine: Bench, outside: Path, kind: str) -> None:
    ignore = engine.root / ".gitignore"
    match kind:
        case "dangling link":
            ignore.symlink_to("no-such")
        case "link out":
            (outside / "rules").write_text("*.txt\n")
            ignore.symlink_to(outside / "rules")
        case "folder":
            ignore.mkdir()
        case "binary":
            ignore.write_bytes(b"\xff\xfe\0\n")
        case _:
            ignore.write_text("[\n\\\n[z-a]\n{a\n***\n/\n//\n*.log\n")
    plant(
        engine.root,
        {"kept.py": "needle\n", "dropped.log": "needle\n"} if kind == "bad patterns" else {"kept.py": "needle\n"},
    )
    found = engine.ok("glob_search", pattern="*.*")["files"]
    assert found == ([] if kind == "bad patterns" else ["kept.py"])
    assert engine.ok("grep_search", pattern="needle", path="kept.py")["results"] == ["kept.py:1:needle"]


@pytest.mark.parametrize("pattern", ["(", "[z-a]", "*a", "a{2,1}", "(?P<x"])
def test_a_bad_expression_is_a_clear_error(engine: Bench, wood: Path, pattern: str) -> None:
    error = engine.refused("grep_search", pattern=pattern)
    assert re.search(r"regex|regular expression", error)


@pytest.mark.parametrize("tool", ["glob_search", "grep_search"])
def test_a_place_that_is_not_there(engine: Bench, tool: str) -> None:
    assert engine.refused(tool, pattern="x", path="no/such") == "no/such does not exist"


def test_globbing_a_file_is_refused(engine: Bench, wood: Path) -> None:
    assert "main.py" in engine.refused("glob_search", pattern="*", path="main.py")


@pytest.mark.parametrize("pattern", ["[", "[z-a]", "{", "}", "a{b", "[!", "\\", "!", "!*", "#", " ", "**/**/**", "[[]"])
def test_an_odd_glob_is_answered(engine: Bench, wood: Path, pattern: str) -> None:
    """What a glob of these means is no matter, but that there is an answer is."""
    for tool, arguments in (
        ("glob_search", {"pattern": pattern}),
        ("grep_search", {"pattern": "x", "include": pattern}),
    ):
        outcome = engine.call(tool, **arguments)
        assert "internal error" not in outcome.text


@pytest.mark.parametrize(
    "pattern", ["{a,b}" * 40, "*a" * 60 + "b", "**/" * 60 + "x", "{" * 500, "?" * 1000, "{" + "," * 999]
)
def test_a_hostile_glob_does_not_hang(engine: Bench, pattern: str) -> None:
    deep = "/".join("a" * 20)
    plant(engine.root, {"a" * 200: "x", f"{deep}/{'a' * 100}": "x"})
    started = time.monotonic()
    for tool, arguments in (
        ("glob_search", {"pattern": pattern}),
        ("grep_search", {"pattern": "x", "include": pattern}),
    ):
        assert "internal error" not in engine.call(tool, **arguments).text
    assert time.monotonic() - started < 5


def test_the_number_of_files_is_capped_and_all_are_counted(engine: Bench) -> None:
    plant(engine.root, {f"{number:04d}.txt": "" for number in range(450)})
    result = engine.ok("glob_search", pattern="*.txt")
    assert result["files"] == [f"{number:04d}.txt" for number in range(200)]
    assert result["count"] == 450


def test_the_number_of_lines_is_capped_in_all_and_per_file(engine: Bench) -> None:
    plant(engine.root, {f"{number}.txt": "x\n" * 100 for number in range(4)})
    result = engine.ok("grep_search", pattern="x")
    assert result["results"] == [f"0.txt:{n}:x" for n in range(1, 31)] + [f"1.txt:{n}:x" for n in range(1, 21)]
    assert result["count"] == 120


@needs_rg
def test_the_walk_says_that_it_is_slow(bench: Bench, hide: Hide) -> None:
    assert "note" not in bench.ok("glob_search", pattern="*")
    hide("rg")
    for tool in ("glob_search", "grep_search"):
        note = bench.ok(tool, pattern="x")["note"]
        assert NOTE in note
        assert "slower" in note


@needs_rg
@needs_bwrap
def test_ripgrep_runs_in_the_sandbox(caged: Bench, wood: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert caged.ok("glob_search", pattern="*.py")["files"] == ["a/second.py", "a-first.py", "a.py", "main.py"]
    monkeypatch.setenv("RIPGREP_CONFIG_PATH", str(wood / "evil"))
    (wood / "evil").write_text("--pre=./evil.sh\n")
    assert caged.ok("grep_search", pattern="needle", path="main.py")["count"] == 1


@needs_rg
@needs_bwrap
@needs_root
def test_a_folder_that_may_not_be_read_does_not_spoil_the_search(caged: Bench) -> None:
    plant(caged.root, {"open/a.txt": "needle\n", "shut/b.txt": "needle\n"})
    os.chown(caged.root / "shut", 65534, 65534)
    (caged.root / "shut").chmod(0o700)
    assert caged.ok("grep_search", pattern="needle")["results"] == ["open/a.txt:1:needle"]
    assert caged.ok("glob_search", pattern="*.txt")["files"] == ["open/a.txt"]


@needs_rg
def test_required_but_missing_sandbox_stops_ripgrep(make_bench: MakeBench, hide: Hide) -> None:
    hide("bwrap")
    bench = make_bench("require")
    assert "mode is require" in bench.refused("grep_search", pattern="x")
    assert "mode is require" in bench.refused("glob_search", pattern="x")


SLOW = "(a+)+$"
MATCHER = "Search texts with a regular expression"


@pytest.mark.parametrize("pattern", [SLOW, "(a|a)*b", "(?:a{1,60000}){1,60000}$"])
def test_a_hostile_expression_holds_nobody_and_is_killed(
    shell_bench: Bench, hide: Hide, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    hide("rg")
    monkeypatch.setattr(places, "TIMEOUT_SECS", 1)
    plant(shell_bench.root, {"a.txt": "fine\n", "b.txt": "a" * 60 + "!\n"})

    async def search() -> tuple[str, int]:
        call = asyncio.create_task(shell_bench.run("grep_search", pattern=pattern))
        beats = 0
        while not call.done():
            await asyncio.sleep(0.01)
            beats += 1
        return str((await call).content), beats

    started = time.monotonic()
    answer, beats = asyncio.run(search())
    assert "the regular expression is too slow" in answer
    assert time.monotonic() - started < 5
    assert beats > 30, "the event loop was held"
    assert running_in(shell_bench.root, MATCHER) == []


def test_a_cancelled_search_ends_its_process(shell_bench: Bench, hide: Hide) -> None:
    hide("rg")
    plant(shell_bench.root, {"b.txt": "a" * 60 + "!\n"})

    async def search() -> None:
        call = asyncio.create_task(shell_bench.run("grep_search", pattern=SLOW))
        await reached(lambda: bool(running_in(shell_bench.root, MATCHER)))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(search())
    assert running_in(shell_bench.root, MATCHER) == []


@pytest.mark.parametrize("pattern", ["a\0b", "\ud800", "(" * 9000, "x" * 20_000, "[" + "a-z" * 2000 + "]"])
def test_an_odd_expression_is_answered_without_ripgrep(bench: Bench, hide: Hide, pattern: str) -> None:
    hide("rg")
    plant(bench.root, {"a.txt": "x\n"})
    assert "internal error" not in bench.call("grep_search", pattern=pattern).text


def test_large_files_go_through_the_pipe(shell_bench: Bench, hide: Hide) -> None:
    hide("rg")
    plant(shell_bench.root, {f"{n}.txt": "y" * 3_000_000 + "\nneedle\n" for n in range(3)})
    result = shell_bench.ok("grep_search", pattern="needle")
    assert result["results"] == ["0.txt:2:needle", "1.txt:2:needle", "2.txt:2:needle"]


@pytest.mark.parametrize("rule", ["*a" * 60 + "b", "**/a/" * 60 + "b", "*" * 3000 + "b", "[a-a]*" * 60 + "b"])
def test_a_hostile_gitignore_holds_nobody(bench: Bench, hide: Hide, rule: str) -> None:
    hide("rg")
    deep = "/".join("a" * 60)
    plant(bench.root, {".gitignore": f"{rule}\n*.log\n", "a" * 200: "x\n", f"{deep}/c": "x\n", "a.log": "x\n"})

    async def longest_wait() -> tuple[int, float]:
        call = asyncio.create_task(bench.run("glob_search", pattern="*"))
        longest, last = 0.0, time.monotonic()
        while not call.done():
            await asyncio.sleep(0.01)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        content = (await call).content
        assert isinstance(content, dict)
        return content["count"], longest

    started = time.monotonic()
    count, longest = asyncio.run(longest_wait())
    assert count == 2
    assert longest < 1, "the event loop was held"
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("lines", ["*.log\n" * 200_000, "*a" * 300_000], ids=["many", "long"])
def test_rules_without_end_are_refused(bench: Bench, hide: Hide, lines: str) -> None:
    hide("rg")
    plant(bench.root, {".gitignore": lines, "a.txt": "x\n"})
    assert "the .gitignore files have more than 524288 bytes" in bench.refused("glob_search", pattern="*")


def test_a_walk_through_what_is_left_out_ends_in_time_too(
    bench: Bench, hide: Hide, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide("rg")
    monkeypatch.setattr(places, "TIMEOUT_SECS", -1)
    plant(bench.root, {".gitignore": "*.log\n", "a.log": "x\n"})
    assert "search a smaller folder" in bench.refused("glob_search", pattern="*")


PIECES = re.findall(
    r"\S+",
    "a b ab c d * ** *** ? / / **/ /** ! # \\ \\* \\a - ] ]-b] [ [] [ab] [!a] [^b] [a-c] [c-a] [!c-a] [a/b] []a]",
)
PIECES += [" ", "\\ ", "[a-]", "[\\]]", "[[:alpha:]]", "[[:digit:]b]", "[[:x:]]"]
RULE = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
# A slash behind a backslash means this or that to git, by what stands before it.
RULES = st.lists(RULE.filter(lambda rule: "\\/" not in rule), max_size=5)
LEAVES = [
    "a",
    "b",
    "c ",
    "ab/a",
    "ab/b",
    "ab/d/a",
    "ab/d/ab",
    "d/a",
    "d/b/c",
    "d/b/a/b",
    "d/*",
    "d/]",
    "1/a",
    "1/1",
    "!",
]


@needs_git
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rules=RULES, inner=RULES)
def test_the_walk_leaves_out_what_git_ignores(bench: Bench, hide: Hide, rules: list[str], inner: list[str]) -> None:
    hide("rg")
    files = {".gitignore": "\n".join(rules), "d/.gitignore": "\n".join(inner)}
    plant(bench.root, files | dict.fromkeys(LEAVES, "x\n"))
    if not (bench.root / ".git").exists():
        subprocess.run(["git", "init", "--quiet"], cwd=bench.root, check=True)
    command = ["git", "ls-files", "-z", "--others", "--exclude-per-directory=.gitignore"]
    listed = subprocess.run(command, cwd=bench.root, capture_output=True, text=True, check=True).stdout.split("\0")
    kept = [name for name in listed[:-1] if not name.endswith(".gitignore")]
    assert bench.ok("glob_search", pattern="*")["files"] == sorted(kept, key=lambda name: name.split("/"))
