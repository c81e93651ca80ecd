"""An application over real parts and a scripted upstream, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httputil import HTTPHeaders
from tornado.ioloop import IOLoop
from tornado.web import Application

from pawand.daemon import Parts
from pawand.web.app import make_app
from tests import harness
from tests.conftest import LogWatch
from tests.fakes.openai_server import OpenAIServer


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir()
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Flags of the daemon, from `@pytest.mark.settings(server__port=1)`."""
    marker = request.node.get_closest_marker("settings")
    return dict(marker.kwargs) if marker else {}


@pytest.fixture
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """What the daemon finds in its environment besides, from `@pytest.mark.environment(NAME="value")`."""
    marker = request.node.get_closest_marker("environment")
    return dict(marker.kwargs) if marker else {}


@pytest.fixture
def parts(
    io_loop: IOLoop,
    workspace: Path,
    state: Path,
    upstream: OpenAIServer,
    settings: dict[str, Any],
    environment: dict[str, str],
) -> Iterator[Parts]:
    made = harness.parts(workspace, state, upstream.url, environment, **settings)
    io_loop.run_sync(made.outside.provider.warm, timeout=30)
    yield made
    io_loop.run_sync(made.aclose, timeout=30)
    made.services.turns.store.close()


@pytest.fixture
def app(parts: Parts, log_watch: LogWatch) -> Application:
    return make_app(parts.services)


@pytest.fixture(autouse=True)
def _no_blocking(io_loop: IOLoop) -> Iterator[BlockBuster]:
    """A call that would block the loop raises."""
    with harness.no_blocking() as watch:
        yield watch


async def until(condition: Callable[[], Any], what: str, seconds: float = 5) -> None:
    for _ in range(int(100 * seconds)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never: {what}")


Fetch = Callable[..., Any]


@pytest.fixture
def fetch(http_client: AsyncHTTPClient, base_url: str) -> Fetch:
    """`await fetch(path, method=…, body=…, headers=…)`; errors are answers too."""
    address = base_url.replace("localhost", "127.0.0.1")

    async def call(path: str, **options: Any) -> HTTPResponse:
        options.setdefault("raise_error", False)
        options.setdefault("request_timeout", 20)
        if "body" in options:
            options.setdefault("method", "POST")
            if not isinstance(options.get("headers"), HTTPHeaders):
                options["headers"] = {"Content-Type": "application/json", **options.get("headers", {})}
        return await http_client.fetch(address + path, **options)

    return call
