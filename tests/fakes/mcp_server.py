"""An MCP server as users have them: `mcp_server.py` on its standard streams, `mcp_server.py PORT` on HTTP."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import sys
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.types import AudioContent, CallToolResult, EmbeddedResource, ImageContent, ResourceLink, TextContent
from mcp_types import BlobResourceContents

server = MCPServer("fake")


@server.tool()
def echo(text: str, times: int = 1) -> str:
    """Say it again."""
    return " ".join([text] * times)


@server.tool()
def look(path: str) -> str:
    """What there is to see."""
    return " ".join(sorted(os.listdir(path)))


@server.tool()
def environment(name: str) -> str:
    return os.environ.get(name, "(not set)")


@server.tool()
def reach(host: str, port: int) -> str:
    try:
        with socket.create_connection((host, port), timeout=5):
            return "reached"
    except OSError as error:
        return str(error)


@server.tool()
def fail(text: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=text)], is_error=True)


@server.tool()
def show() -> CallToolResult:
    """Everything that is no plain text."""
    data = base64.b64encode(b"12345").decode()
    blob = BlobResourceContents(uri="file:///a", blob=data)
    return CallToolResult(
        content=[
            TextContent(text="here"),
            ImageContent(data=data, mime_type="image/png"),
            AudioContent(data=data, mime_type="audio/wav"),
            ResourceLink(name="x", uri="http://example.com/x"),
            EmbeddedResource(resource=blob),
        ]
    )


@server.tool()
def numbers() -> CallToolResult:
    return CallToolResult(content=[], structured_content={"one": 1})


@server.tool()
async def wait(begun: str, ended: str) -> str:
    """Writes the name of its process to the file `begun`, and to `ended` when it is cancelled."""
    Path(begun).write_text(str(os.getpid()))
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        Path(ended).touch()
        raise
    return "waited"


@server.tool()
async def meet(place: str, others: int) -> str:
    """Returns when so many calls are here at the same time."""
    folder = Path(place)
    (folder / f"{id(asyncio.current_task())}").touch()
    while len(list(folder.iterdir())) < others:  # noqa: ASYNC110 - the files are the event
        await asyncio.sleep(0.01)
    return "met"


@server.tool()
def die() -> None:
    os._exit(3)


@server.tool()
async def grow(ctx: Context[Any]) -> str:
    """Offers one tool more from now on."""
    server.add_tool(lambda: "grown", name="grown", description="New.")
    await ctx.session.send_tool_list_changed()
    return "done"


@server.tool()
def header(name: str, ctx: Context[Any]) -> str:
    return (ctx.headers or {}).get(name, "(not set)")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run()
