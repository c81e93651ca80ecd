"""From a stored conversation to the messages that are sent: what the strictest providers accept, nothing else.

One leading system message; every tool call answered by exactly one result right after it; roles alternate; no empty
content. A summary stands in the place of what it replaces. The stored session is never changed by this.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from pawand.sessions.model import Message
from pawand.tools.output import clip
from pawand.wire import ToolCall

INTERRUPTED_RESULT = '{"error":"interrupted before it finished; its effects are unknown"}'
NO_ANSWER = "(I gave no answer.)"
NO_OUTPUT = "(no output)"
RESUMED = "(The conversation goes on.)"
CHARS_PER_TOKEN = 4
MAX_NAME_CHARS = 64
SHORT_ID_CHARS = 9
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")

Thoughts = Callable[[Message], str | None]
"""What a model thought before it made the calls of a message; None where it is not to be sent back."""


def no_thoughts(message: Message) -> None:
    return None


def to_messages(
    system: str, history: Iterable[Message], thoughts: Thoughts = no_thoughts, result_chars: int | None = None
) -> list[dict[str, Any]]:
    """OpenAI chat messages. Works for any history, one written by another program or cut by a crash included.

    `result_chars` is how much of each tool's result is sent; None for all of it.
    """
    history = visible(list(history))
    leading = [system, *(m.content for m in history if m.role == "system" and m.content.strip())]
    sent = [{"role": "system", "content": "\n\n".join(leading)}]
    for group in _groups(history, thoughts):
        _append(sent, group)
    if result_chars is not None:
        for message in sent:
            if message["role"] == "tool":
                message["content"] = clip(message["content"], result_chars)
    return sent


def with_short_ids(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with ids of nine letters and digits, the same ones every time, for Mistral (`wants_short_ids`)."""
    for message in messages:
        for call in message.get("tool_calls", ()):
            call["id"] = _short_id(call["id"])
        if "tool_call_id" in message:
            message["tool_call_id"] = _short_id(message["tool_call_id"])
    return messages


def _short_id(id: str) -> str:
    if len(id) == SHORT_ID_CHARS and id.isascii() and id.isalnum():
        return id
    return hashlib.sha256(id.encode("utf-8", "replace")).hexdigest()[:SHORT_ID_CHARS]


def visible(history: list[Message]) -> list[Message]:
    """What the model still sees: the newest summary, the user's goal at its time, and what it does not replace."""
    at = summary_at(history)
    if at is None:
        return history
    begin = history[at].replaces
    kept = [message for message in history[begin:] if not message.replaces]
    if not any(message.role == "user" for message in history[begin:at]):
        kept = [*_last_user_message(history[:begin]), *kept]
    return [history[at], *kept]


def summary_at(history: list[Message]) -> int | None:
    """The place of the newest summary. What a summary replaces ends before it."""
    places = reversed(range(len(history)))
    return next((at for at in places if 0 < history[at].replaces <= at and history[at].role == "system"), None)


def estimate_tokens(messages: Iterable[Message]) -> int:
    """A quarter of the characters: for providers that report no usage, and for what they have not counted yet."""
    return sum(_characters(message) for message in messages) // CHARS_PER_TOKEN


def _characters(message: Message) -> int:
    calls = sum(len(call.name) + len(msgspec.json.encode(call.arguments)) for call in message.tool_calls)
    return len(message.content) + calls


def _last_user_message(history: list[Message]) -> list[Message]:
    return [message for message in history if message.role == "user"][-1:]


def _groups(history: list[Message], thoughts: Thoughts) -> list[list[dict[str, Any]]]:
    """Messages that belong together: an assistant's tool calls with their results, every other one alone."""
    groups: list[list[dict[str, Any]]] = []
    for position, message in enumerate(history):
        if message.role == "user" and message.content.strip():
            groups.append([{"role": "user", "content": message.content}])
        elif message.role == "assistant" and message.tool_calls:
            groups.append(_calls_with_results(history, position, thoughts(message)))
        elif message.role == "assistant" and message.content.strip():
            groups.append([{"role": "assistant", "content": message.content}])
    return groups


def _calls_with_results(history: list[Message], position: int, thoughts: str | None) -> list[dict[str, Any]]:
    message = history[position]
    results: dict[str, str] = {}
    for at in range(position + 1, len(history)):
        follower = history[at]
        if follower.role == "assistant" or follower.role == "user":
            break
        if follower.tool_result is not None:
            content = follower.content if follower.content.strip() else NO_OUTPUT
            results.setdefault(follower.tool_result.tool_call_id, content)
    calls = {call.id: call for call in message.tool_calls}.values()
    head: dict[str, Any] = {"role": "assistant", "tool_calls": [_call(call) for call in calls]}
    if message.content.strip():
        head["content"] = message.content
    if thoughts is not None:
        head["reasoning_content"] = thoughts
    answers = [
        {"role": "tool", "tool_call_id": call.id, "content": results.get(call.id, INTERRUPTED_RESULT)} for call in calls
    ]
    return [head, *answers]


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = call.arguments if isinstance(call.arguments, dict) else {"text": call.arguments}
    # Models invent names; a provider that checks them would refuse the whole conversation from then on.
    name = _NOT_IN_NAMES.sub("_", call.name)[:MAX_NAME_CHARS] or "_"
    function = {"name": name, "arguments": msgspec.json.encode(arguments).decode()}
    return {"id": call.id, "type": "function", "function": function}


def _append(sent: list[dict[str, Any]], group: list[dict[str, Any]]) -> None:
    """Add a group, with a short message between where two of a kind would meet."""
    last, role = sent[-1]["role"], group[0]["role"]
    if role == "user" and last in ("user", "tool"):
        sent.append({"role": "assistant", "content": NO_ANSWER})
    elif role == "assistant" and last in ("system", "assistant"):
        sent.append({"role": "user", "content": RESUMED})
    sent += group
