"""A model server that costs little: `python -m bench.upstream`; it prints its port.

What it answers is in the name of the model that is asked for (`Plan`). Every event is a write of its own, as model
servers do it, and the connections take turns; only `whole` answers go out in one piece.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Iterator
from functools import lru_cache

import msgspec
from msgspec import Struct

_MODEL = re.compile(rb'"model": ?"(bench-[^"]*)"')
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_END = b"0\r\n\r\n"


class Plan(Struct, frozen=True):
    """An answer of `tokens` tokens: `rate` of them a second, or all at once, or even in one piece."""

    tokens: int
    rate: int = 0
    whole: bool = False

    @property
    def model(self) -> str:
        return f"bench-{self.tokens}-{self.rate}-{int(self.whole)}"

    @classmethod
    def of(cls, model: str) -> Plan:
        tokens, rate, whole = map(int, model.split("-")[1:])
        return cls(tokens, rate, bool(whole))


def token(number: int, sent_ns: int = 0) -> str:
    """The text of a token; a paced one says when it was sent, by the monotonic clock."""
    return f"w{number}-{sent_ns} "


def _chunk(body: object) -> bytes:
    data = b"data: %b\n\n" % (body if isinstance(body, bytes) else msgspec.json.encode(body))
    return b"%x\r\n%b\r\n" % (len(data), data)


def _delta(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    head = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1764000000, "model": "bench"}
    return _chunk({**head, "choices": [choice]})


def _last_events(tokens: int) -> list[bytes]:
    usage = {"prompt_tokens": 1000, "completion_tokens": tokens, "total_tokens": 1000 + tokens}
    return [_delta({}, "stop"), _chunk({"choices": [], "usage": usage}), _chunk(b"[DONE]") + _END]


@lru_cache
def _encoded(tokens: int) -> list[bytes]:
    first = _HEAD + _delta({"role": "assistant", "content": ""})
    return [first, *(_delta({"content": token(n)}) for n in range(tokens)), *_last_events(tokens)]


def _stamped(tokens: int) -> Iterator[bytes]:
    yield _HEAD + _delta({"role": "assistant", "content": ""})
    for number in range(tokens):
        yield _delta({"content": token(number, time.monotonic_ns())})
    yield b"".join(_last_events(tokens))


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._may_write = True
        self._events: Iterator[bytes] = iter(())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, gap, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not gap or length is None or len(body) < int(length[1]):
            return
        self._received.clear()
        model = _MODEL.search(body)
        assert model is not None
        self._answer(Plan.of(model[1].decode()))

    def _answer(self, plan: Plan) -> None:
        if plan.whole:
            self._transport.write(b"".join(_encoded(plan.tokens)))
        elif plan.rate:
            interval = 1 / plan.rate
            due = self._loop.time() + random.random() * interval  # noqa: S311 - not all in step
            self._pace(_stamped(plan.tokens), due, interval)
        else:
            self._events = iter(_encoded(plan.tokens))
            self._next()

    def _next(self) -> None:
        if not self._may_write:
            return
        event = next(self._events, None)
        if event is not None and not self._transport.is_closing():
            self._transport.write(event)
            self._loop.call_soon(self._next)

    def _pace(self, events: Iterator[bytes], due: float, interval: float) -> None:
        """One event at each time that is due, whether the last one was taken or not."""
        event = next(events, None)
        if event is not None and not self._transport.is_closing():
            self._transport.write(event)
            self._loop.call_at(due + interval, self._pace, events, due + interval, interval)

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        self._next()


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
