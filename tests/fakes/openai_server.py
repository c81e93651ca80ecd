"""A scripted upstream: a real HTTP server on loopback that speaks OpenAI's chat completions API.

Each request takes the next reply of the script (or asks a function for one). It holds requests to the rules of the
strictest providers and answers 400 when one is broken, as they do. It runs in a thread with a loop of its own, so that
it serves tests on an event loop and daemons in other processes alike.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What to send: a status and headers, then `parts`, each a piece of the body or a pause in seconds."""

    parts: Sequence[bytes | float] = ()
    status: int = 200
    content_type: str = "text/event-stream"
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """Drop the connection after the last part, without the end of the body."""


Script = Sequence[Reply] | Callable[[Body], Reply]


def chunk(delta: Body, finish: str | None = None, **more: Any) -> bytes:
    body = {
        "id": "c",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    return b"data: " + json.dumps(body | more).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def usage(prompt: int = 10, completion: int = 5) -> bytes:
    count = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return b"data: " + json.dumps({"choices": [], "usage": count}).encode() + b"\n\n"


def text(*tokens: str, finish: str = "stop", pause: float = 0.0) -> Reply:
    """An answer in the given tokens."""
    parts: list[bytes | float] = [chunk({"role": "assistant", "content": ""})]
    for token in tokens:
        if pause:
            parts.append(pause)
        parts.append(chunk({"content": token}))
    return Reply([*parts, chunk({}, finish), usage(), DONE])


def calls(*wanted: tuple[str, Body], say: str = "", split: int = 7) -> Reply:
    """An answer that calls tools, each call's arguments in pieces of `split` characters."""
    parts: list[bytes | float] = [chunk({"role": "assistant", "content": say})] if say else []
    for index, (name, arguments) in enumerate(wanted):
        head = {
            "index": index,
            "id": f"call_{index}_{name}",
            "type": "function",
            "function": {"name": name, "arguments": ""},
        }
        parts.append(chunk({"tool_calls": [head]}))
        encoded = json.dumps(arguments)
        for at in range(0, len(encoded), split):
            piece = {"index": index, "function": {"arguments": encoded[at : at + split]}}
            parts.append(chunk({"tool_calls": [piece]}))
    return Reply([*parts, chunk({}, "tool_calls"), usage(), DONE])


def refusal(status: int, message: str = "no", **headers: str) -> Reply:
    body = json.dumps({"error": {"message": message, "type": "test"}}).encode()
    return Reply([body], status=status, content_type="application/json", headers=headers)


def listing(*parts: bytes | float, status: int = 200) -> Reply:
    """The answer of `/models`."""
    return Reply(parts, status=status, content_type="application/json")


Conversation = Generator[Reply, list[Any], None]
"""Yields what the model says; is sent the results of the tools that it called."""


class Dialogue:
    """A script that reads what its tools answered, as a model does. `failure` is what went wrong in it."""

    def __init__(self, conversation: Conversation) -> None:
        self.failure: BaseException | None = None
        self._conversation = conversation
        self._begun = False

    def __call__(self, request: Body) -> Reply:
        try:
            if self._begun:
                return self._conversation.send(_results(request))
            self._begun = True
            return next(self._conversation)
        except Exception as error:
            self.failure = self.failure or error
            return refusal(400, f"the script failed: {error!r}")

    def check(self) -> None:
        """Raises what went wrong in the script."""
        if self.failure is not None:
            raise AssertionError("the script failed") from self.failure


def _results(request: Body) -> list[Any]:
    """What the last calls came to, in their order: JSON values, or the text where it was cut."""
    messages = request["messages"]
    last = max(index for index, message in enumerate(messages) if message["role"] != "tool")
    return [_value(message["content"]) for message in messages[last + 1 :]]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


class OpenAIServer:
    """Use as a context manager; `url` is the base URL, `requests` what came in, oldest first."""

    def __init__(self, script: Script = ()) -> None:
        self.script: Script = script
        self.requests: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.models = listing(b'{"object": "list", "data": [{"id": "test-model"}]}')
        self.listings = 0
        """How often it was asked which models it has."""
        self.hung_up = threading.Event()
        """Set when a client closes its connection before the end of an answer."""
        self._next = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> OpenAIServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._run())

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=512)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                headers = _parse_headers(head)
                if head.startswith(b"GET "):
                    self.listings += 1
                    self.headers.append(headers)
                    if not await self._answer(self.models, writer, reader):
                        break
                    continue
                body = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))))
                self.headers.append(headers)
                self.requests.append(body)
                if not await self._answer(self._reply(body), writer, reader):
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    def _reply(self, body: Body) -> Reply:
        broken = check_rules(body)
        if broken:
            return refusal(400, broken)
        if callable(self.script):
            return self.script(body)
        assert self._next < len(self.script), f"the script has no reply number {self._next + 1}"
        self._next += 1
        return self.script[self._next - 1]

    async def _answer(self, reply: Reply, writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> bool:
        head = f"HTTP/1.1 {reply.status} X\r\nContent-Type: {reply.content_type}\r\nTransfer-Encoding: chunked\r\n"
        head += "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in reply.headers.items())
        writer.write(head.encode() + b"\r\n")
        watch = asyncio.ensure_future(reader.read(1))
        watch.add_done_callback(lambda task: task.cancelled() or task.exception())  # a client that resets is no news
        for part in reply.parts:
            if isinstance(part, bytes):
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await writer.drain()
            elif (await asyncio.wait([watch], timeout=part))[0]:
                self.hung_up.set()
                return False
        if reply.cut:
            writer.transport.abort()
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        if watch.done():
            return False
        watch.cancel()
        await asyncio.wait([watch])
        return True


def _parse_headers(head: bytes) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in head.decode("latin-1").split("\r\n")[1:] if ":" in line)
    return {name.strip().lower(): value.strip() for name, value in pairs}


def check_rules(body: Body) -> str:
    """What a strict provider would refuse, or an empty string."""
    messages = body["messages"]
    if messages[0]["role"] != "system" or any(m["role"] == "system" for m in messages[1:]):
        return "exactly one system message, the first"
    previous = "system"
    pending: list[str] = []
    for message in messages[1:]:
        role = message["role"]
        if role == "tool":
            if not pending or message["tool_call_id"] != pending.pop(0):
                return f"unexpected tool result {message['tool_call_id']}"
        elif pending:
            return f"no result for {pending[0]}"
        elif (
            role == previous
            or (role == "user" and previous == "tool")
            or (role == "assistant" and previous == "system")
        ):
            return f"unexpected role '{role}' after role '{previous}'"
        if not message.get("content") and not message.get("tool_calls"):
            return "empty content"
        for call in message.get("tool_calls", []):
            if not isinstance(json.loads(call["function"]["arguments"]), dict):
                return "arguments are no object"
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", call["function"]["name"]):
                return f"bad name {call['function']['name']!r}"
            if "mistral" in body["model"] and not re.fullmatch(r"[A-Za-z0-9]{9}", call["id"]):
                return f"bad id {call['id']}"
            pending.append(call["id"])
        previous = role
    return f"no result for {pending[0]}" if pending else ""
