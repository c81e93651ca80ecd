"""One value put into a TOML file: all the rest stays as it is."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawand.cli.toml_edit import as_toml, changed, inline, put

COMMENTED = """\
# My settings.

# The model.
model   =  'a'   # the usual one

  # How freely.
# temperature = 1.0

[server]  # where
# The port.
  # port = 3300
host = [
  "127.0.0.1", # here
]

# --- the rest ---
[mcp.fs]
command = "fs"
env = { A = "1", B.C = "2" }
[permissions]
bash = "prompt"

# [cloud]
# model = "b"
"""


def diff(before: str, after: str) -> list[str]:
    """The lines that went and came, without what is around them."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (["model"], '"b"', ["-model   =  'a'   # the usual one", '+model   =  "b"   # the usual one']),
        (["temperature"], "0.5", ["+temperature = 0.5"]),
        (["max_tokens"], "5", ["+max_tokens = 5"]),
        (["server", "port"], "3400", ["+  port = 3400"]),
        (["server", "agent_id"], '"x"', ['+agent_id = "x"']),
        (["permissions", "bash"], '"deny"', ['-bash = "prompt"', '+bash = "deny"']),
        (["permissions", "a tool"], '"deny"', ['+"a tool" = "deny"']),
        (["mcp", "fs", "args"], '["x"]', ['+args = ["x"]']),
        (
            ["mcp", "fs", "env", "A"],
            '"9"',
            ['-env = { A = "1", B.C = "2" }', '+env = { A = "9", B.C = "2" }'],
        ),
        (["mcp", "git", "command"], '"git"', ["+", "+[mcp.git]", '+command = "git"']),
        (["cloud", "model"], '"c"', ["+", "+[cloud]", '+model = "c"']),
        (["eruka"], "{ enabled = true }", ["+eruka = { enabled = true }"]),
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False], ids=["", "no-last-newline"])
def test_what_changes(path: list[str], value: str, expected: list[str], ending: str, last: bool) -> None:
    before = (COMMENTED if last else COMMENTED.removesuffix("\n")).replace("\n", ending)
    after = put(before, path, value)
    assert diff(before, after) == expected
    assert after.endswith(ending) == last
    assert after.count("\n") == after.count(ending)
    assert tomllib.loads(after) == changed(tomllib.loads(before), path, value)


def test_where_new_lines_stand() -> None:
    after = put(put(put(COMMENTED, ["server", "port"], "1"), ["temperature"], "2"), ["server", "agent_id"], '"x"')
    assert "  # port = 3300\n  port = 1\nhost" in after
    assert "# temperature = 1.0\ntemperature = 2\n\n[server]" in after
    assert ']\nagent_id = "x"\n\n# --- the rest ---\n' in after


@pytest.mark.parametrize(
    ("before", "path", "value", "after"),
    [
        ("", ["a"], "1", "a = 1\n"),
        ("", ["a", "b", "c"], "1", "[a.b]\nc = 1\n"),
        ("\n", ["a"], "1", "a = 1\n\n"),
        ("# head", ["a"], "1", "# head\na = 1"),
        ("# head\n\n# of b\n[b]\n", ["a"], "1", "# head\na = 1\n\n# of b\n[b]\n"),
        ("# of b\n[b]\n", ["a"], "1", "a = 1\n# of b\n[b]\n"),
        ("a.b = 1 # x\nz = 2\n", ["a", "b"], "2", "a.b = 2 # x\nz = 2\n"),
        ("a.b = 1 # x\nz = 2\n", ["a", "c"], "2", "a.b = 1 # x\na.c = 2\nz = 2\n"),
        ("[t]\na.b.c = 1\nz = 2\n", ["t", "a", "b", "d"], "2", "[t]\na.b.c = 1\na.b.d = 2\nz = 2\n"),
        ("a = {}\n", ["a", "b"], "1", "a = {b = 1}\n"),
        ("a = {}\n", ["a", "b", "c"], "1", "a = {b = {c = 1}}\n"),
        ("[a.b]\nx = 1\n[c]\n", ["a", "y"], "2", "[a.b]\nx = 1\n[c]\n\n[a]\ny = 2\n"),
        ("[a.b]\nx = 1\n[c]\ny = 1\n[a]\nz = 1\n", ["a", "w"], "2", "[a.b]\nx = 1\n[c]\ny = 1\n[a]\nz = 1\nw = 2\n"),
        ("[a.b]\nx = 1\n[c]\n[a.d]\nz = 1\n", ["a", "b", "x"], "2", "[a.b]\nx = 2\n[c]\n[a.d]\nz = 1\n"),
        ("[[l]]\nx = 1\n", ["t", "x"], "2", "[[l]]\nx = 1\n\n[t]\nx = 2\n"),
        ("[ 't' ]\n", ["t", "x"], "2", "[ 't' ]\nx = 2\n"),
        ('s = """\n[t]\n# x = 1\n"""\n', ["t", "x"], "2", 's = """\n[t]\n# x = 1\n"""\n\n[t]\nx = 2\n'),
        ('[t]\ns = """\n# x = 1\n"""\n', ["t", "x"], "2", '[t]\ns = """\n# x = 1\n"""\nx = 2\n'),
        ("[t]\ns = [\n# x = 1\n1]\n", ["t", "x"], "2", "[t]\ns = [\n# x = 1\n1]\nx = 2\n"),
        ("[t]\ns = [\n[1],\n]\n", ["t", "x"], "2", "[t]\nx = 2\ns = [\n[1],\n]\n"),
        ("n = nan\nt = 2020-01-01\n", ["x"], "nan", "n = nan\nt = 2020-01-01\nx = nan\n"),
        ("[t]\n# [t.u]\n# x = 1\n", ["t", "x"], "2", "[t]\nx = 2\n# [t.u]\n# x = 1\n"),
        ("# \u2028 x\na = 1\n", ["a"], "2", "# \u2028 x\na = 2\n"),
        ("a = 1\r\nb = 2\n", ["b"], "3", "a = 1\r\nb = 3\n"),
    ],
)
def test_files_of_all_kinds(before: str, path: list[str], value: str, after: str) -> None:
    assert put(before, path, value) == after


def test_a_file_that_changes_nothing_is_the_same() -> None:
    assert put(COMMENTED, ["permissions", "bash"], '"prompt"') == COMMENTED


@pytest.mark.parametrize(
    ("text", "path"),
    [("a = 1\n", ["a", "b"]), ("[[a]]\nb = 1\n", ["a", "b"]), ("a = [", ["b"]), ("a = 1\na = 2\n", ["a"])],
)
def test_what_cannot_be_done_is_refused(text: str, path: list[str]) -> None:
    with pytest.raises(ValueError):
        put(text, path, "1")


@pytest.mark.parametrize(
    ("typed", "kind", "value"),
    [
        ("5", int, 5),
        (" 5 ", int, 5),
        ("5", str, "5"),
        ("true", str | None, "true"),
        ("2024-01-01", str, "2024-01-01"),
        ("0123", str, "0123"),
        ("1", float, 1),
        ("abc", int, "abc"),
        ("99", bool, 99),
        ('"5"', str, "5"),
        ("'a'", str, "a"),
        ("", str, ""),
        ("a # b", str, "a # b"),
        ("5 # b", str, "5 # b"),
        ("1\nb = 2", str, "1\nb = 2"),
        ('["a", 5]', str | list[str], ["a", 5]),
        ("{ a = 1 }", dict[str, int], {"a": 1}),
        ("https://example.com/x?y=[1]", str, "https://example.com/x?y=[1]"),
        ('"a\nb', str, '"a\nb'),
        ("[" * 500, str, "[" * 500),
    ],
)
def test_what_was_typed(typed: str, kind: Any, value: Any) -> None:
    assert tomllib.loads(f"v = {as_toml(typed, kind)}") == {"v": value}


# --- whatever stands in the file ------------------------------------------------------------------

names = st.sampled_from(["a", "b", "c", "a-1", "x y", "é", "a.b"])
scalars = st.one_of(
    st.integers(-9, 99), st.booleans(), st.sampled_from([0.5, math.inf]), st.text("ab\"'#[]=\\\n\r\t\x7f é", max_size=9)
)
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(names, v, max_size=3), max_leaves=6)
comments = st.sampled_from(["", "# note", "# a = 1", "  # b = 2", "# [a]", '# "', "#"])


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Tables, dotted keys, lists of tables, comments everywhere; not all of them valid."""
    lines: list[str] = []
    for _ in range(draw(st.integers(0, 8))):
        lines.append(draw(comments))
        kind = draw(st.sampled_from(["value", "value", "value", "dotted", "table", "list"]))
        key = [draw(names) for _ in range({"value": 1, "list": 1}.get(kind, 2))]
        written = ".".join(name if name.isascii() and name.replace("-", "").isalnum() else inline(name) for name in key)
        if kind in ("table", "list"):
            lines.append(f"[{written}]" if kind == "table" else f"[[{written}]]")
        else:
            space, tail = draw(st.sampled_from(["", " "])), draw(st.sampled_from(["", " # tail"]))
            lines.append(f"{written}{space}= {as_written(draw(values), draw(st.booleans()))}{tail}")
    end = draw(st.sampled_from(["\n", "\r\n"]))
    return end.join(lines) + draw(st.sampled_from(["", end]))


def as_written(value: Any, several_lines: bool) -> str:
    if several_lines and isinstance(value, list):
        return "[\n" + "".join(f"  {inline(inner)}, # one\n" for inner in value) + "]"
    if several_lines and isinstance(value, str) and "\r" not in value and "\x7f" not in value:
        return '"""\n' + value.replace("\\", "\\\\").replace('"', '\\"') + '"""'
    return inline(value)


@given(documents(), st.lists(names, min_size=1, max_size=3), values)
def test_nothing_else_changes(text: str, path: Sequence[str], value: Any) -> None:
    try:
        before = tomllib.loads(text)
        wanted = changed(before, path, inline(value))
    except ValueError:
        return
    try:
        after = put(text, path, inline(value))
    except ValueError:
        return
    assert repr(_sorted(tomllib.loads(after))) == repr(_sorted(wanted))
    old, new = text.split("\n"), after.split("\n")
    same_head = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    rest, come = old[same_head:], new[same_head:]
    while rest and come and rest[-1] == come[-1]:
        rest.pop()
        come.pop()
    if not _is_there(before, path):
        assert len(rest) <= 1  # the line of an inline table, or the last one without an end
        assert not any(line.strip().startswith("#") and line.strip("\r") not in "".join(come) for line in rest)


def _is_there(values: Any, path: Sequence[str]) -> bool:
    for name in path:
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(inner) for inner in value] if isinstance(value, list) else value


@given(documents(), st.data())
def test_a_value_that_is_there_is_all_that_changes(text: str, data: st.DataObject) -> None:
    try:
        before = tomllib.loads(text)
    except ValueError:
        return
    paths = list(_scalars(before))
    if not paths:
        return
    path = data.draw(st.sampled_from(paths))
    try:
        after = put(text, path, '"new"')
    except ValueError:
        assert "[[" in text  # lists of tables that do not stand together
        return
    assert repr(_sorted(tomllib.loads(after))) == repr(_sorted(changed(before, path, '"new"')))
    went = diff(text, after)
    assert len([line for line in went if line.startswith("+")]) <= 1
    assert all("# note" not in line for line in went)
    assert text.count("# tail") == after.count("# tail")


def _scalars(values: dict[str, Any], prefix: tuple[str, ...] = ()) -> Any:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _scalars(value, (*prefix, name))
        elif not isinstance(value, list):
            yield (*prefix, name)
