"""Fixtures of all tests: a loop without deprecated calls, and a watch over blocking calls and stray log lines."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tornado.ioloop import IOLoop

from tests import disk, harness, npm
from tests.fakes.openai_server import OpenAIServer

# How long hypothesis takes to make its first example says nothing about us.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture
def io_loop() -> Iterator[IOLoop]:
    """pytest-tornado's own fixture calls the deprecated make_current."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield IOLoop.current()
    asyncio.set_event_loop(None)
    loop.close()


class LogWatch(logging.Handler):
    """Collects what no test may leave behind: warnings and errors that it did not say it expects."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self._expected: list[str] = []

    def expect(self, part: str) -> None:
        """Lines that hold `part` are fine in this test; one must come."""
        self._expected.append(part)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name}: {record.getMessage()}")

    def check(self) -> None:
        stray = [line for line in self.lines if not any(part in line for part in self._expected)]
        missing = [part for part in self._expected if not any(part in line for line in self.lines)]
        assert not stray, f"unexpected log lines: {stray}"
        assert not missing, f"expected log lines did not come: {missing}"


@pytest.fixture
def log_watch() -> Iterator[LogWatch]:
    watch = LogWatch()
    logging.getLogger().addHandler(watch)
    yield watch
    logging.getLogger().removeHandler(watch)
    watch.check()


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the user's own settings, keys or sessions."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(("ERUKA_", "NVIDIA_", "OPENAI_", "OLLAMA_", "PAWAN", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def upstream() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


@pytest.fixture
def env(upstream: OpenAIServer) -> dict[str, str]:
    """What a daemon in a process of its own needs to find the upstream."""
    return {"OPENAI_API_URL": upstream.url, "OPENAI_API_KEY": harness.API_KEY, "PAWAN_MODEL": harness.MODEL,
            "PAWAN_PROVIDER": "openai"}  # fmt: skip


@pytest.fixture
def small_disk() -> Iterator[disk.SmallDisk]:
    with disk.mounted() as mounted:
        yield mounted


@pytest.fixture(scope="session")
def npm_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of published MCP servers are."""
    return npm.install(tmp_path_factory.mktemp("npm"))
