"""Who answers: `/health` of peers, asked in the background and remembered. No caller waits for it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Collection
from typing import Any

import msgspec
from msgspec import Struct
from tornado.httpclient import AsyncHTTPClient, HTTPRequest

ANSWER_SECS = 2.0
FRESH_SECS = 30.0
MAX_AT_ONCE = 16
MAX_ANSWER_BYTES = 64 * 1024


class _Health(Struct):
    """What makes an answer one of an agent."""

    agent_id: str


class _Result(Struct, frozen=True):
    online: bool
    until: float


class Probes:
    """What is known of each URL of a daemon; `revision` is another number after each change."""

    def __init__(self) -> None:
        self.revision = 0
        self._known: dict[str, _Result] = {}
        self._queue: deque[str] = deque()
        self._asking: set[str] = set()
        self._workers: set[asyncio.Task[None]] = set()
        self._client: AsyncHTTPClient | None = None

    def online(self, url: str) -> bool | None:
        """None until it was asked."""
        result = self._known.get(url)
        return result.online if result is not None else None

    def ask(self, urls: Collection[str]) -> None:
        """Ask those again that were not asked for a while, in the background; forget all others."""
        now = time.monotonic()
        self._known = {url: self._known[url] for url in dict.fromkeys(urls) if url in self._known}
        waiting = set(self._queue) | self._asking
        stale = [url for url in dict.fromkeys(urls) if url not in self._known or self._known[url].until < now]
        self._queue.extend(url for url in stale if url not in waiting)
        for _ in range(min(len(self._queue), MAX_AT_ONCE - len(self._workers))):
            worker = asyncio.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def aclose(self) -> None:
        self._queue.clear()
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        if self._client is not None:
            self._client.close()
            self._client = None

    async def _work(self) -> None:
        while self._queue:
            url = self._queue.popleft()
            self._asking.add(url)
            online = await self._answers(url)
            self._asking.discard(url)
            if self.online(url) != online:
                self.revision += 1
            self._known[url] = _Result(online, time.monotonic() + FRESH_SECS)

    async def _answers(self, url: str) -> bool:
        if self._client is None:
            self._client = AsyncHTTPClient(
                force_instance=True,
                max_clients=MAX_AT_ONCE,
                max_buffer_size=MAX_ANSWER_BYTES,
                max_body_size=MAX_ANSWER_BYTES,
            )
        request = HTTPRequest(
            f"{url}/health",
            connect_timeout=ANSWER_SECS,
            request_timeout=ANSWER_SECS,
            follow_redirects=False,
            decompress_response=False,  # the limit would count the bytes before
            user_agent="pawand",
        )
        answering = asyncio.ensure_future(self._client.fetch(request, raise_error=False))
        answering.add_done_callback(_take_note)
        try:
            # Tornado complains of a request that fails after it was cancelled; this one ends by its own timeout.
            response = await asyncio.shield(answering)
            return response.code == 200 and bool(msgspec.json.decode(response.body, type=_Health).agent_id)
        except Exception:  # noqa: BLE001 - whatever goes wrong there, no agent answers
            return False


def _take_note(future: asyncio.Future[Any]) -> None:
    """The failure of a request that nobody waits for any more is no news."""
    if not future.cancelled():
        future.exception()
