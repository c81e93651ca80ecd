"""The registry: how a call's arguments are checked and how its failures become data."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta, Struct

from pawand.daemon import TOOLS
from pawand.errors import ToolError
from pawand.redact import Redactor
from pawand.tools.base import Emit, Outcome, Registry, Tool, ToolContext
from pawand.wire import ToolCall
from tests.tools.conftest import Bench

KEY = "nvapi-0123456789abcdef"


class Numbers(Struct):
    first: Annotated[int, Meta(ge=1, description="The first")]
    words: list[str] = []
    loud: bool = False


def registry_of(action: Callable[[Numbers], Any], secrets: tuple[str, ...] = ()) -> Registry:
    async def run(args: Numbers, context: ToolContext, emit: Emit) -> Any:
        return action(args)

    tool = Tool(name="numbers", description="Numbers.", arguments=Numbers, run=run, read_only=True)
    return Registry([tool], Redactor(list(secrets)))


def run(registry: Registry, bench: Bench, arguments: Any = None) -> Outcome:
    call = ToolCall(id="call_7", name="numbers", arguments={"first": 1} if arguments is None else arguments)
    return asyncio.run(registry.run(call, registry.parse(call), bench.context, bench.emitted.append))


def parse(arguments: Any, name: str = "numbers") -> Any:
    return registry_of(lambda args: None).parse(ToolCall(id="call_7", name=name, arguments=arguments))


def test_an_unknown_tool_is_told_the_names_of_the_known() -> None:
    registry = Registry(TOOLS, Redactor([]))
    with pytest.raises(ToolError, match="there is no tool read; there are: bash, read_file, write_file, edit_file"):
        registry.parse(ToolCall(id="1", name="read", arguments={}))


@pytest.mark.parametrize("arguments", ['{"first": 1', "", None, [], [{"first": 1}], 3, "first=1", True])
def test_arguments_that_are_no_object_are_refused(arguments: Any) -> None:
    with pytest.raises(ToolError, match="must be a JSON object"):
        parse(arguments)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({}, "`first`"),
        ({"first": None}, "first"),
        ({"first": "one"}, "first"),
        ({"first": 0}, ">= 1"),
        ({"first": [1]}, "first"),
        ({"first": 1, "words": "one"}, "words"),
        ({"first": 1, "words": [{"a": 1}]}, "words"),
        ({"first": 1, "loud": "perhaps"}, "loud"),
    ],
    ids=repr,
)
def test_wrong_arguments_are_answered_with_the_schema(arguments: dict[str, Any], part: str) -> None:
    with pytest.raises(ToolError) as caught:
        parse(arguments)
    message = str(caught.value)
    assert message.startswith("wrong arguments for numbers: ")
    assert part in message
    schema = json.loads(message.partition("The schema is ")[2])
    assert schema["required"] == ["first"]
    assert schema["properties"]["first"] == {"type": "integer", "minimum": 1, "description": "The first"}


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"first": "2"}, Numbers(2)),
        ({"first": 2.0}, Numbers(2)),
        ({"first": 1, "loud": "true"}, Numbers(1, [], True)),
        ({"first": 1, "words": []}, Numbers(1)),
    ],
    ids=repr,
)
def test_harmless_slips_are_forgiven(arguments: dict[str, Any], found: Numbers) -> None:
    assert parse(arguments) == found


@pytest.mark.parametrize("name", ["unheard", "First", "", "a" * 1000])
def test_an_unknown_argument_is_refused_lest_a_default_takes_its_place(name: str) -> None:
    with pytest.raises(ToolError, match=r"wrong arguments for numbers: unknown: .*The schema is"):
        parse({"first": 1, name: 2})


def test_the_schemas_are_functions_as_providers_want_them_in_the_order_of_the_tools() -> None:
    registry = Registry(TOOLS, Redactor([]))
    assert [schema["function"]["name"] for schema in registry.schemas] == [tool.name for tool in TOOLS]
    for schema in registry.schemas:
        assert schema["type"] == "function"
        parameters = schema["function"]["parameters"]
        assert parameters["type"] == "object"
        assert set(parameters["required"]) <= set(parameters["properties"])
        assert "$ref" not in json.dumps(schema)
        assert schema["function"]["description"]


def test_who_changes_nothing() -> None:
    registry = Registry(TOOLS, Redactor([]))
    read_only = [tool.name for tool in TOOLS if registry.is_read_only(tool.name)]
    assert read_only == [
        *("read_file", "list_directory", "glob_search", "grep_search"),
        *("git_status", "git_diff", "git_log", "git_blame", "git_branch"),
    ]
    assert not registry.is_read_only("no such tool")


def test_a_result_becomes_an_outcome(bench: Bench) -> None:
    outcome = run(registry_of(lambda args: {"sum": args.first + 1}), bench)
    assert outcome.success
    assert outcome.content == {"sum": 2}
    assert outcome.text == '{"sum":2}'
    assert outcome.call.id == "call_7"
    assert outcome.duration_ms >= 0


@pytest.mark.parametrize(
    ("result", "success", "text"),
    [
        ("plain text", True, "plain text"),
        ({"success": False, "exit_code": 1}, False, '{"success":false,"exit_code":1}'),
        ({"success": None}, True, '{"success":null}'),
        (["a"], True, '["a"]'),
        (None, True, "null"),
    ],
    ids=repr,
)
def test_success_is_what_the_result_says(bench: Bench, result: Any, success: bool, text: str) -> None:
    outcome = run(registry_of(lambda args: result), bench)
    assert (outcome.success, outcome.text) == (success, text)


def fail(error: BaseException) -> Callable[[Numbers], Any]:
    def action(args: Numbers) -> Any:
        raise error

    return action


def test_a_tool_error_is_data_and_no_log_line(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    outcome = run(registry_of(fail(ToolError("the file is gone"))), bench)
    assert not outcome.success
    assert outcome.content == {"error": "the file is gone", "tool": "numbers"}
    assert outcome.preview == "the file is gone"
    assert caplog.records == []


@pytest.mark.parametrize(
    "error", [ValueError("KeyError is close"), OSError(5, "I/O error"), RecursionError(), KeyError("x")]
)
def test_a_bug_of_a_tool_is_a_failure_and_an_error_in_the_log(
    bench: Bench, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    outcome = run(registry_of(fail(error)), bench)
    assert not outcome.success
    assert outcome.content == {"error": f"internal error of the tool: {type(error).__name__}", "tool": "numbers"}
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "tool numbers failed"
    assert record.exc_info
    assert record.exc_info[1] is error


@pytest.mark.parametrize(
    "result", [Path("/x"), pytest.param({"a": object()}, id="object"), "\ud800", {"\udcff": 1}, {1j: 1}], ids=ascii
)
def test_a_result_that_is_no_json_is_a_failure_too(bench: Bench, caplog: pytest.LogCaptureFixture, result: Any) -> None:
    outcome = run(registry_of(lambda args: result), bench)
    msgspec.json.encode(outcome.content)
    assert not outcome.success
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_cancelling_is_no_failure(bench: Bench) -> None:
    with pytest.raises(asyncio.CancelledError):
        run(registry_of(fail(asyncio.CancelledError())), bench)


@pytest.mark.parametrize(
    "result",
    [
        {"stdout": f"key={KEY}!"},
        {"deep": [{"er": [KEY]}]},
        {KEY: 1},
        [f"{KEY}{KEY}"],
        f"x{KEY}",
        {"stdout": "x" * 20_000 + KEY + "x" * 20_000},
        {"stdout": f"{KEY}\n" * 2000},
    ],
    ids=lambda result: repr(result)[:30],
)
def test_secrets_never_come_out(bench: Bench, result: Any) -> None:
    outcome = run(registry_of(lambda args: result, (KEY,)), bench)
    assert KEY not in outcome.text
    assert KEY[:12] not in outcome.text
    assert KEY not in outcome.preview


def test_what_is_no_secret_is_left_alone(bench: Bench) -> None:
    outcome = run(registry_of(lambda args: {"content": "Authorization: Bearer abcdefgh1234"}, (KEY,)), bench)
    assert outcome.content == {"content": "Authorization: Bearer abcdefgh1234"}


def test_secrets_in_errors_are_masked(bench: Bench) -> None:
    outcome = run(registry_of(fail(ToolError(f"no file {KEY}")), (KEY,)), bench)
    assert outcome.content["error"] == "no file [redacted]"


@pytest.mark.parametrize("message", ["x" * 10**6, "line\n" * 10**5])
def test_an_error_is_short_too(bench: Bench, message: str) -> None:
    outcome = run(registry_of(fail(ToolError(f"begin {message} end"))), bench)
    assert len(outcome.text) < 9000
    assert outcome.content["error"].startswith("begin")
    assert outcome.content["error"].endswith("end")


def test_an_error_holds_only_characters_that_every_reader_takes(bench: Bench) -> None:
    outcome = run(registry_of(fail(ToolError(f"no {os.fsdecode(bytes([0xFF]))}\0"))), bench)
    assert outcome.content["error"] == "no ?\u2400"


def test_a_long_result_is_cut_to_the_limit(bench: Bench) -> None:
    outcome = run(registry_of(lambda args: {"success": True, "stdout": "line\n" * 10_000}), bench)
    assert len(outcome.text) <= bench.context.max_result_chars
    assert outcome.content["success"] is True
    assert "characters left out" in outcome.content["stdout"]
