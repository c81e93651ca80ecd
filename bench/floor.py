"""The floor: what Tornado alone costs. `python -m bench.floor UPSTREAM_URL`; it prints its port.

A bare handler that passes the bytes of the same upstream on as they come, a flush for each wake, through the same HTTP
client as pawand's. No agent, no sessions, no events of its own, no access check.
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import msgspec
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler


class Chat(RequestHandler):
    def initialize(self, url: str, client: aiohttp.ClientSession) -> None:
        self._url = url
        self._client = client

    async def post(self) -> None:
        asked = msgspec.json.decode(self.request.body)
        messages = [{"role": "user", "content": asked["message"]}]
        body = {"model": asked["model"], "messages": messages, "stream": True}
        self.set_header("Content-Type", "text/event-stream")
        async with self._client.post(f"{self._url}/chat/completions", data=msgspec.json.encode(body)) as answer:
            async for data in answer.content.iter_any():
                self.write(data)
                try:
                    await self.flush()
                except StreamClosedError:
                    return


class Health(RequestHandler):
    def get(self) -> None:
        self.write({"status": "ok"})


async def _serve(url: str) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        app = Application([("/chat/stream", Chat, {"url": url, "client": client}), ("/health", Health)])
        listeners = bind_sockets(0, "127.0.0.1", backlog=1024)
        HTTPServer(app).add_sockets(listeners)
        print(listeners[0].getsockname()[1], flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
