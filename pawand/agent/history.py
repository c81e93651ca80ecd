"""From a stored conversation to the messages that are sent: what the strictest providers accept, nothing else.

One leading system message; every tool call answered by exactly one result right after it; roles alternate; no empty
content. The stored session is never changed by this.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from pawand.sessions.model import Message
from pawand.wire import ToolCall

INTERRUPTED_RESULT = '{"error":"interrupted before it finished; its effects are unknown"}'
NO_ANSWER = "(I gave no answer.)"
NO_OUTPUT = "(no output)"
RESUMED = "(The conversation goes on.)"


def to_messages(system: str, history: Iterable[Message]) -> list[dict[str, Any]]:
    """OpenAI chat messages. Works for any history, one written by another program or cut by a crash included."""
    history = list(history)
    leading = [system, *(m.content for m in history if m.role == "system" and m.content.strip())]
    sent = [{"role": "system", "content": "\n\n".join(leading)}]
    for group in _groups(history):
        _append(sent, group)
    return sent


def estimate_tokens(messages: list[dict[str, Any]]) -> int:
    """A quarter of the characters, for providers that report no usage."""
    return len(msgspec.json.encode(messages)) // 4


def _groups(history: list[Message]) -> list[list[dict[str, Any]]]:
    """Messages that belong together: an assistant's tool calls with their results, every other one alone."""
    groups: list[list[dict[str, Any]]] = []
    for position, message in enumerate(history):
        if message.role == "user" and message.content.strip():
            groups.append([{"role": "user", "content": message.content}])
        elif message.role == "assistant" and message.tool_calls:
            groups.append(_calls_with_results(message, history[position + 1 :]))
        elif message.role == "assistant" and message.content.strip():
            groups.append([{"role": "assistant", "content": message.content}])
    return groups


def _calls_with_results(message: Message, after: list[Message]) -> list[dict[str, Any]]:
    results: dict[str, str] = {}
    for follower in after:
        if follower.role == "assistant" or follower.role == "user":
            break
        if follower.tool_result is not None:
            content = follower.content if follower.content.strip() else NO_OUTPUT
            results.setdefault(follower.tool_result.tool_call_id, content)
    calls = {call.id: call for call in message.tool_calls}.values()
    head: dict[str, Any] = {"role": "assistant", "tool_calls": [_call(call) for call in calls]}
    if message.content.strip():
        head["content"] = message.content
    answers = [
        {"role": "tool", "tool_call_id": call.id, "content": results.get(call.id, INTERRUPTED_RESULT)} for call in calls
    ]
    return [head, *answers]


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = call.arguments if isinstance(call.arguments, dict) else {"text": call.arguments}
    function = {"name": call.name, "arguments": msgspec.json.encode(arguments).decode()}
    return {"id": call.id, "type": "function", "function": function}


def _append(sent: list[dict[str, Any]], group: list[dict[str, Any]]) -> None:
    """Add a group, with a short message between where two of a kind would meet."""
    last, role = sent[-1]["role"], group[0]["role"]
    if role == "user" and last in ("user", "tool"):
        sent.append({"role": "assistant", "content": NO_ANSWER})
    elif role == "assistant" and last in ("system", "assistant"):
        sent.append({"role": "user", "content": RESUMED})
    sent += group
