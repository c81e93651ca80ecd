"""`Markup`: what a model writes into its text, cut in any way."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawand.providers.base import Reasoning, Text
from pawand.providers.markup import Markup


def tool(name: str, **properties: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"properties": properties}}}


TOOLS = [
    tool("bash", command={"type": "string"}, timeout={"anyOf": [{"type": "integer"}, {"type": "null"}]}),
    tool("bash_x", command={"anyOf": [{"type": "string"}, {"type": "null"}]}),
    tool("list", depth={"type": "integer"}, names={"type": ["array", "null"]}),
]

Result = tuple[list[tuple[str, str]], list[tuple[str, Any]]]


def read(pieces: Iterable[str], tools: list[dict[str, Any]] = TOOLS) -> Result:
    """The runs of text ("t") and reasoning ("r"), and the calls."""
    markup = Markup(tools)
    parts = [part for piece in pieces for part in markup.feed(piece)] + markup.end()
    assert all(part.text for part in parts)
    runs: list[tuple[str, str]] = []
    for part in parts:
        kind = "t" if isinstance(part, Text) else "r"
        if runs and runs[-1][0] == kind:
            runs[-1] = (kind, runs[-1][1] + part.text)
        else:
            runs.append((kind, part.text))
    assert len({call.id for call in markup.calls}) == len(markup.calls)
    return runs, [(call.name, call.arguments) for call in markup.calls]


def check(text: str, result: Result, tools: list[dict[str, Any]] = TOOLS) -> None:
    assert read([text], tools) == result
    assert read(text, tools) == result, "one character a chunk"


THINKING: dict[str, list[tuple[str, str]]] = {
    "": [],
    "plain": [("t", "plain")],
    "<think>a</think>b": [("r", "a"), ("t", "b")],
    "<THINK>a</Think>b": [("r", "a"), ("t", "b")],
    "<thinking>a</think> b</thinking>\n\nc": [("r", "a</think> b"), ("t", "c")],
    "<think>\na\n</think>\n\n  b\n": [("r", "\na\n"), ("t", "b\n")],
    " \n<think>a</think>\nb": [("t", " \n"), ("r", "a"), ("t", "b")],
    "<think>a</think>\n<think>b</think> \n c": [("r", "ab"), ("t", "c")],
    "a\n<think>b</think>\nc": [("t", "a\n"), ("r", "b"), ("t", "\nc")],
    "a\n<think>b</think> <think>c</think>d": [("t", "a\n"), ("r", "b"), ("t", " "), ("r", "c"), ("t", "d")],
    "<think>a <b> ``` [x] </thin </thinking>": [("r", "a <b> ``` [x] </thin </thinking>")],
    "<think>a</thi": [("r", "a</thi")],
    "<think>": [],
    "<think></think>": [],
    "<thin": [("t", "<thin")],
    "<think >a": [("t", "<think >a")],
    "<thin\u212a>a": [("t", "<thin\u212a>a")],  # the Kelvin sign is no k
    # talked about
    "The <think> tag and </think> too": [("t", "The <think> tag and </think> too")],
    "Use `<think>` and `</think>`.": [("t", "Use `<think>` and `</think>`.")],
    "`<think>` is a tag": [("t", "`<think>` is a tag")],
    "```\n<think>\na\n</think>\n```\nb": [("t", "```\n<think>\na\n</think>\n```\nb")],
    "a\n~~~~ x\n```\n~~~\n<think>a\n~~~~\n<think>b</think>": [
        ("t", "a\n~~~~ x\n```\n~~~\n<think>a\n~~~~\n"),
        ("r", "b"),
    ],
    "1. ```py\n   x\n   ```\r\n<think>b</think>": [("t", "1. ```py\n   x\n   ```\r\n"), ("r", "b")],
    "> ```\n> </think>": [("t", "> ```\n> </think>")],
    "```a<b``` c\n<think>b</think>": [("t", "```a<b``` c\n"), ("r", "b")],
    "``` a\n``` b\n<think>b": [("t", "``` a\n``` b\n<think>b")],
    "<think>a</think>```\n<think>": [("r", "a"), ("t", "```\n<think>")],
    "a ` stray\n<think>b": [("t", "a ` stray\n"), ("r", "b")],
    "``a ` </think>`` </think>b": [("t", "``a ` </think>`` b")],
    # without an opening
    "thought</think>\n\nanswer": [("t", "thought\n\nanswer")],
    "a</think>b</thinking>c": [("t", "abc")],
    "</think><think>b</think>c": [("r", "b"), ("t", "c")],
    "<think>a</think>b</think>c": [("r", "a"), ("t", "bc")],
}


@pytest.mark.parametrize("text", THINKING)
def test_thinking(text: str) -> None:
    check(text, (THINKING[text], []))


BASH = '{"name": "bash", "arguments": {"command": "ls"}}'
LS = ("bash", {"command": "ls"})
TAGGED = f"<tool_call>\n{BASH}\n</tool_call>"
FUNCTION = "<tool_call>\n<function=bash>\n<parameter=command>\nls\n</parameter>\n</function>\n</tool_call>"


def tagged(**call: Any) -> str:
    return f"<tool_call>{json.dumps(call)}</tool_call>"


CALLS: dict[str, tuple[str, list[tuple[str, Any]]]] = {
    f"[TOOL_CALLS][{BASH}]": ("", [LS]),
    f"a [TOOL_CALLS] [{BASH}, {BASH}] b": ("a  b", [LS, LS]),
    '[TOOL_CALLS]bash{"command": "ls"}': ("", [LS]),
    '[TOOL_CALLS]bash {"command": "ls"}bash_x{"a": "}"}\nlist{} done': (
        " done", [LS, ("bash_x", {"a": "}"}), ("list", {})],
    ),
    '[TOOL_CALLS]bash[ARGS]{"command": "ls"}[TOOL_CALLS]list[ARGS] {}': ("", [LS, ("list", {})]),
    '[TOOL_CALLS]bash[CALL_ID]9NxXzBd1k[ARGS]{"command": "ls"}list[CALL_ID]a[ARGS] {} x': (" x", [LS, ("list", {})]),
    "[TOOL_CALLS]bash[CALL_ID]9NxXzBd1k": ("[TOOL_CALLS]bash[CALL_ID]9NxXzBd1k", []),
    '<tool_call>{"name": "bash", "parameters": {"command": "ls"}}</tool_call>': ("", [LS]),
    f"Look:\n{TAGGED}\n{TAGGED}\nDone": ("Look:\n\n\nDone", [LS, LS]),
    f"<tool_call>{BASH}": ("", [LS]),
    f"<tool_call>{BASH}\n </tool_c": ("", [LS]),
    f"<tool_call>{BASH}\n<tool_call>{BASH}</tool_call>": ("", [LS, LS]),
    tagged(name="bash", arguments='{"command": "ls"}'): ("", [LS]),
    tagged(name="bash", arguments="<think>x</think>{}"): ("", [("bash", {})]),
    tagged(name="bash", arguments="no JSON"): ("", [("bash", "no JSON")]),
    tagged(name="bash"): ("", [("bash", {})]),
    tagged(arguments={"a": [1, -2.5e3, True, None, {}, [], "</tool_call>\"\\"]}, name="list"): (
        "", [("list", {"a": [1, -2500.0, True, None, {}, [], '</tool_call>"\\']})],
    ),
    r'<tool_call>{"name": "bash", "arguments": {"command": "\ud83d"}}</tool_call>': ("", [("bash", {"command": "?"})]),
    "<tool_call><function=bash><parameter=command>\ud83d</parameter><parameter=\ud83d>1</parameter></function>": (
        "", [("bash", {"command": "?", "?": 1})],
    ),
    FUNCTION: ("", [LS]),
    f"a{FUNCTION}\n{FUNCTION}": ("a\n", [LS, LS]),
    FUNCTION.removesuffix("</tool_call>"): ("", [LS]),
    "<tool_call><function=list></function></tool_call>": ("", [("list", {})]),
    "<tool_call><function=bash><parameter=command>12</parameter><parameter=timeout>12</parameter>"
    "<parameter=more>x</parameter></function></tool_call>": (
        "", [("bash", {"command": "12", "timeout": 12, "more": "x"})],
    ),
    "<tool_call><function=bash_x><parameter=command>\n\n<a>\n</parameter></function></tool_call>": (
        "", [("bash_x", {"command": "\n<a>"})],
    ),
    '<tool_call><function=list><parameter=names>["a"]</parameter><parameter=depth>deep</parameter></function>'
    "</tool_call>": (
        "", [("list", {"names": ["a"], "depth": "deep"})],
    ),
    # a good one beside a bad one
    '<tool_call><tool_call>{"name": "list"}</tool_call>': ("<tool_call>", [("list", {})]),
    f'<tool_call>{{"name": <tool_call>{BASH}</tool_call>': ('<tool_call>{"name": ', [LS]),
    f"[TOOL_CALLS]{TAGGED}": ("[TOOL_CALLS]", [LS]),
    '[TOOL_CALLS]list{}bash{"a" 1} x': ('bash{"a" 1} x', [("list", {})]),
    f"```\n{TAGGED}\n```\n{TAGGED}": (f"```\n{TAGGED}\n```\n", [LS]),
    f"`{TAGGED}`": (f"`{TAGGED}`", []),
}  # fmt: skip


@pytest.mark.parametrize("text", CALLS)
def test_calls(text: str) -> None:
    shown, calls = CALLS[text]
    check(text, ([("t", shown)] if shown else [], calls))


NO_CALLS = [
    "<tool_call>", "<tool_call", "<tool_call>\n",
    "[TOOL_CALLS]", "[TOOL_CALL", "[TOOL_CALLS] bash", "[TOOL_CALLS]bash[ARGS]",
    "[tool_calls]list{}", "<TOOL_CALL>" + BASH,
    "<tool_call>{}</tool_call>", "<tool_call>[]</tool_call>", "[TOOL_CALLS][]", "[TOOL_CALLS][1]", "[TOOL_CALLS]{}",
    tagged(name="rm", arguments={}), tagged(name=7), tagged(arguments={}), "[TOOL_CALLS]rm{}", "[TOOL_CALLS]bash_y{}",
    f'[TOOL_CALLS][{BASH}, {{"name": "rm"}}]',
    "<tool_call><function=rm></function></tool_call>",
    "<tool_call><function=bash><parameter=command>ls</parameter>", "<tool_call><function=bash><parameter=command>ls",
    "<tool_call><function=bash><parameter=command", "<tool_call><function=bash>ls</function></tool_call>",
    f"<tool_call>{BASH} is what I would send", f"<tool_call>{BASH}</tool>",
    '<tool_call>{"name": "bash", "arguments": {"command": "echo "hi""}}</tool_call>',
    '<tool_call>{"name": "bash", "arguments": {"command": "ls"', '<tool_call>{"name": "bash\\', '<tool_call>{"name"',
    '<tool_call>{"name": "bash", "arguments": 1.2.3}</tool_call>', '<tool_call>{"name": "bash",}</tool_call>',
    '<tool_call>{"name": "bash", "arguments": [}]}</tool_call>',
    '<tool_call>{"name": "list", "arguments": ' + "[" * 200 + "]" * 200 + "}</tool_call>",
    f"```json\n{TAGGED}\n```", f"Send `<tool_call>{BASH}</tool_call>` then", f"``` {BASH} [TOOL_CALLS]list{{}}",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_CALLS)
def test_what_is_no_call_is_text(text: str) -> None:
    check(text, ([("t", text)], []))
    check(f"a {text}", ([("t", f"a {text}")], []) if not text.startswith("```") else read([f"a {text}"]))


@pytest.mark.parametrize("text", [text for text in CALLS if "<think>" not in text])
def test_without_tools_nothing_is_a_call(text: str) -> None:
    check(text, ([("t", text)], []), [])


def test_text_goes_out_as_soon_as_it_can_be_no_marker() -> None:
    markup = Markup(TOOLS)
    assert [markup.feed(piece) for piece in ("a <", "b<thi", "s <thi", "nk>", " [TOOL_", "x", "c")] == [
        [Text("a ")], [Text("<b")], [Text("<this ")], [Text("<think>")], [Text(" ")], [Text("[TOOL_x")], [Text("c")]
    ]  # fmt: skip
    assert markup.end() == []


def test_thinking_goes_out_as_it_comes() -> None:
    markup = Markup(TOOLS)
    assert [markup.feed(piece) for piece in ("<think>", "a", "b</", "c", "</think", ">", "\n", " d")] == [
        [], [Reasoning("a")], [Reasoning("b")], [Reasoning("</c")], [], [], [], [Text("d")]
    ]  # fmt: skip


def test_a_broken_call_goes_out_at_its_first_wrong_character() -> None:
    markup = Markup(TOOLS)
    assert markup.feed('a<tool_call>{"name": "bash", ') == [Text("a")]
    assert markup.feed("oops") == [Text('<tool_call>{"name": "bash", oops')]


def test_calls_that_come_by_themselves_make_the_written_ones_text() -> None:
    markup = Markup(TOOLS)
    assert markup.feed(f"a{TAGGED}b<tool_call>{{") == [Text("ab")]
    assert markup.give_up_calls() == [Text(TAGGED)]
    assert markup.give_up_calls() == []
    assert markup.feed(f'"name": "bash"}}</tool_call>{TAGGED}') == [
        Text(f'<tool_call>{{"name": "bash"}}</tool_call>{TAGGED}')
    ]
    assert markup.end() == []
    assert markup.calls == []


SCRAPS = st.lists(
    st.sampled_from([
        "<think>", "</think>", "<thinking>", "</thinking>", "<THINK>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]",
        "[ARGS]", "bash", "bash_x", "list", "{", "}", "[", "]", '"', "\\", ":", ",", BASH, TAGGED, FUNCTION, "{}",
        '"name"', "<function=bash>", "</function>", "<parameter=command>", "</parameter>", "`", "``", "```", "~~~",
        "\n", " ", ">", "<", "</", "<t", "x", "1", "é", "\U0001f99c", "- ",
    ]),
    max_size=25,
).map("".join)  # fmt: skip


@st.composite
def cut(draw: st.DrawFn) -> list[str]:
    text = draw(SCRAPS)
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@given(cut())
def test_it_does_not_matter_how_the_text_is_cut(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert read(pieces) == read([text]) == read(text)


@given(cut())
def test_nothing_is_lost(pieces: list[str]) -> None:
    """What was given out and what was taken for calls is all that came, but for the tags and the space after them."""
    text = "".join(pieces)
    markup = Markup(TOOLS)
    parts = [part for piece in pieces for part in markup.feed(piece)] + markup.end()
    count = len(markup.calls)
    taken = markup.give_up_calls()
    assert bool(taken) == bool(count)
    given_out = sorted("".join(part.text for part in [*parts, *taken]))
    for tag in ("<think>", "</think>", "<thinking>", "</thinking>"):
        text = text.replace(tag, "").replace(tag.upper(), "")
    for letter in set(text) - set(" \n") - set("".join("<think>ig/THINKIG")):
        assert given_out.count(letter) == text.count(letter), letter


@given(cut().filter(lambda pieces: "think" not in "".join(pieces).lower()))
def test_without_thinking_text_and_calls_are_the_whole_in_order(pieces: list[str]) -> None:
    markup = Markup(TOOLS)
    parts = [part.text for piece in pieces for part in markup.feed(piece)] + [part.text for part in markup.end()]
    rest = "".join(pieces)
    assert not markup.calls or sum(map(len, parts)) < len(rest)
    taken = "".join(part.text for part in markup.give_up_calls())
    assert sum(map(len, parts)) + len(taken) == len(rest)
    assert is_woven(rest, "".join(parts), taken)


def is_woven(whole: str, one: str, other: str) -> bool:
    """Whether `whole` is made of the characters of both, each in its order."""
    ways = {0}
    for at, letter in enumerate(whole):
        ways = {
            next_way
            for way in ways
            for next_way in (
                [way + 1] if way < len(one) and one[way] == letter else []
            ) + ([way] if at - way < len(other) and other[at - way] == letter else [])
        }  # fmt: skip
    return len(one) in ways


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(JSON_VALUES, st.booleans(), st.integers(0, 4))
def test_every_json_object_can_be_the_arguments(value: Any, ascii: bool, indent: int) -> None:
    call = json.dumps([{"name": "bash", "arguments": {"a": value}}], ensure_ascii=ascii, indent=indent or None)
    for text in (f"[TOOL_CALLS]{call}", f"<tool_call>{call.strip()[1:-1]}</tool_call>"):
        check(text, ([], [("bash", {"a": value})]))


HOSTILE = [
    "<",
    "<th",
    "a<think>",
    "<tool_call>",
    '<tool_call>{"',
    "[TOOL_CALLS]bash{",
    "<tool_call><function=bash>",
    "`",
    "~~~\n",
]


@pytest.mark.parametrize("scrap", HOSTILE)
def test_a_large_answer_in_single_characters_takes_linear_time(scrap: str) -> None:
    """A part that were read again with each character would take minutes."""
    text = scrap * (200_000 // len(scrap))
    runs, calls = read(text)
    assert (runs, calls) == ([("t", text)], [])
