"""A conversation as Markdown, for people to read and keep."""

from __future__ import annotations

import json
import re
from typing import Any

NAMES = {"user": "User", "assistant": "Assistant", "tool": "Result", "system": "Summary"}


def markdown(session: dict[str, Any]) -> str:
    """The whole of a `GET /sessions/{id}`: what was said, each tool call, and its result."""
    title = " ".join(session["title"].split()) or session["id"]
    lines = [f"# {title}", "", f"Session `{session['id']}`, {session['model']}, {_time(session['updated_at'])}"]
    names = {call["id"]: call["name"] for m in session["messages"] for call in m.get("tool_calls", [])}
    for message in session["messages"]:
        lines += ["", *_message(message, names)]
    return "\n".join(lines) + "\n"


def _message(message: dict[str, Any], names: dict[str, str]) -> list[str]:
    role = message["role"]
    heading = NAMES.get(role, role)
    if result := message.get("tool_result"):
        name = names.get(result["tool_call_id"], "a call")
        heading = f"{heading} of {name}{'' if result.get('success') else ' (failed)'}"
    lines = [f"## {heading}, {_time(message['timestamp'])}"]
    if message["content"]:
        lines += ["", *(_fenced(message["content"]) if role == "tool" else [message["content"]])]
    for call in message.get("tool_calls", []):
        arguments = call["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, indent=2)
        lines += ["", f"Calls **{call['name']}**:", "", *_fenced(text, "json")]
    if message.get("interrupted"):
        lines += ["", "*(interrupted)*"]
    return lines


def _fenced(text: str, language: str = "") -> list[str]:
    """In a fence that is longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", text.removesuffix("\n"), fence]


def _time(time: str) -> str:
    return time[:16].replace("T", " ")
