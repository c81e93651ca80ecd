"""What no MCP server should do, on its standard streams: `mcp_hostile.py HABIT`. Standard library only."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

HABIT = sys.argv[1]
OBJECT = {"type": "object"}


HEAVY: dict[str, dict[str, Any]] = {
    "unlike": {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "properties": {"a": {"enum": [{"a": n} for n in range(4500)]}},
    },
    "empty": {"allOf": [{}] * 10_000},
    "wide": {"properties": {"a": {"pattern": "(?i)" + "[\x01-\uffff\u4e00]" * 400}}},
    "odd": {"$schema": []},
}
"""Schemas that are much work to check, or none that anybody foresaw."""


def tool(name: str, schema: Any = OBJECT, **more: Any) -> dict[str, Any]:
    return {"name": name, "inputSchema": schema, **more}


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def references() -> dict[str, Any]:
    """Some lines that ask for 2^40 steps."""
    twice = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    return {"type": "object", "allOf": [{"$ref": "#/$defs/d0"}], "$defs": {**twice, "d40": {}}}


def listing(cursor: str | None) -> dict[str, Any]:
    if HABIT == "pages":
        page = int(cursor or 0)
        return {"tools": [tool(f"t{page:03}")], "nextCursor": str(page + 1)}
    if HABIT == "schemas":
        huge = {"type": "object", "description": "x" * 100_000}
        slow = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
        inside = {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": "^(a+)+$"}
        within = {"type": "object", "properties": {"a": inside}}
        away = {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/x"}}}
        return {
            "tools": [
                tool(
                    "good", {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}
                ),
                tool("list", {"type": "array"}),
                tool("huge", huge),
                tool("none", {"type": "object", "properties": 3}),
                tool("good"),
                tool("slow", slow, description="d" * 100_000),
                tool("twice", references()),
                tool("loop", {"type": "object", "$ref": "#"}),
                tool("away", away),
                tool("within", within),
            ]
        }
    if HABIT == "refused":
        no_expression = {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}
        repeats = {"type": "object", "required": ["a", "a"]}
        return {"tools": [tool("good"), tool("repeats", repeats), tool("expression", no_expression)]}
    if HABIT in HEAVY:
        return {"tools": [tool("good"), *(tool(f"heavy{n}", OBJECT | HEAVY[HABIT]) for n in range(6))]}
    if HABIT == "costly":
        lists = [[n] for n in range(7000)]
        twice = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
        return {
            "tools": [
                tool("enum", {"type": "object", "properties": {"a": {"items": {"enum": lists}}}}),
                tool("contains", {"type": "object", "properties": {"a": {"contains": {"enum": lists}}}}),
                tool("const", {"type": "object", "properties": {"a": {"contains": {"const": lists}}}}),
                tool("any", {"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}] * 1000}}}),
                tool("empty", {"type": "object", "properties": {"a": {"items": {}}}}),
                tool("twice", {"type": "object", "$ref": "#/$defs/d0", "$defs": {**twice, "d40": {"type": "string"}}}),
            ]
        }
    if HABIT == "names":
        return {"tools": [tool(name) for name in ("a.b", "a_b", "a b", "Ä" * 3, "x" * 100, "x" * 101, "")]}
    return {"tools": [tool("call")]}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    method, params = request["method"], request.get("params", {})
    if method == "initialize":
        version = "1999-01-01" if HABIT == "version" else params["protocolVersion"]
        return {
            "protocolVersion": version,
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "hostile", "version": "1"},
        }
    if method == "tools/list":
        return listing(params.get("cursor"))
    return call(params)


def call(params: dict[str, Any]) -> dict[str, Any]:
    if HABIT == "flood":
        piece = "x" * (1 << 20)
        while True:
            sys.stdout.write(piece)
    if HABIT == "ask":
        number = 0
        while True:
            number += 1
            send({"id": f"q{number}", "method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 1}})
    if HABIT == "parts":
        return {"content": [{"type": "text", "text": ""}] * 400_000}
    if HABIT == "no-result":
        return {"content": 3}
    if HABIT == "surrogate":
        return {"content": [{"type": "text", "text": "a\ud800b"}]}
    if HABIT == "asks-once":
        send({"id": "q", "method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 1}})
        reply = json.loads(sys.stdin.readline())
        return {"content": [{"type": "text", "text": json.dumps(reply)}]}
    if HABIT == "schemas":
        return {"content": [{"type": "text", "text": json.dumps(params)}]}
    return {"content": [{"type": "text", "text": params["name"]}]}


def main() -> None:
    if HABIT == "exit":
        sys.exit("this\ncannot work: what-no-tool-may-show")
    if HABIT == "hang":
        time.sleep(600)
    if HABIT == "nonsense":
        for _ in range(1000):
            sys.stdout.write("{}[]\xff\n")
        sys.exit(0)
    sys.stdout.write("starting…\n\n{\n")
    for line in sys.stdin:
        request = json.loads(line)
        if "id" in request and "method" in request:
            send({"id": request["id"], "result": answer(request)})
        if HABIT == "once" and request.get("method") == "tools/list":
            os._exit(0)


main()
