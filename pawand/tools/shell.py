"""`bash`: one shell command in the workspace, its output live and bounded, its whole tree gone at the end."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
from typing import Annotated, Any

from msgspec import Meta, Struct

from pawand.errors import ToolError
from pawand.redact import StreamRedactor
from pawand.tools.base import Emit, Tool, ToolContext
from pawand.tools.output import HeadTail, clean

MAX_TIMEOUT_SECS = 3600
READ_BYTES = 64 * 1024
LIVE_INTERVAL_SECS = 0.1
LIVE_CHARS = 4096
LEFT_OUT = "[…]\n"


class Bash(Struct, forbid_unknown_fields=False):
    command: Annotated[str, Meta(min_length=1, description="The command, run by bash -c in the workspace")]
    workdir: Annotated[str, Meta(description="Folder to run in, relative to the workspace")] = "."
    timeout_secs: Annotated[int, Meta(ge=1, le=MAX_TIMEOUT_SECS)] | None = None
    description: Annotated[str, Meta(description="What the command is for, in a few words")] = ""


async def run(args: Bash, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{success, exit_code, stdout, stderr, command, description, timed_out?}`; success is exit status 0."""
    if "\0" in args.command:
        raise ToolError("the command holds a NUL character")
    timeout = args.timeout_secs or context.bash_timeout_secs
    stdout, stderr = HeadTail(), HeadTail()
    live = _Live(emit)
    timed_out = False
    start = context.sandbox.start(["bash", "-c", args.command], session_id=context.session_id, folder=args.workdir)
    with contextlib.closing(live):
        async with start as process:
            assert process.stdout is not None
            assert process.stderr is not None
            readers = asyncio.gather(
                _drain(process.stdout, context.redactor.stream(), stdout, live),
                _drain(process.stderr, context.redactor.stream(), stderr, live),
            )
            try:
                async with asyncio.timeout(timeout):
                    await readers
                    await process.wait()
            except TimeoutError:
                timed_out = True
    result: dict[str, Any] = {
        "success": process.returncode == 0 and not timed_out,
        "exit_code": process.returncode,
        "stdout": stdout.text(),
        "stderr": stderr.text(),
        "command": args.command,
        "description": args.description,
    }
    if timed_out:
        result |= {"timed_out": True, "error": f"killed after {timeout} s; a longer timeout_secs may be given"}
    return result


async def _drain(stream: asyncio.StreamReader, redactor: StreamRedactor, kept: HeadTail, live: _Live) -> None:
    """Secrets go before anything is cut, since half a secret cannot be told from other text."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while data := await stream.read(READ_BYTES):
        text = redactor.feed(decoder.decode(data))
        kept.feed(text.encode())
        live.feed(text)
    text = redactor.feed(decoder.decode(b"", final=True)) + redactor.flush()
    kept.feed(text.encode())
    live.feed(text)


class _Live:
    """Passes output on as it comes, at most ten times a second and LIVE_CHARS each time."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._text = ""
        self._timer: asyncio.TimerHandle | None = None

    def feed(self, text: str) -> None:
        self._text += text
        if len(self._text) > LIVE_CHARS:
            self._text = LEFT_OUT + self._text[-LIVE_CHARS:]
        if self._timer is None:
            self._pass_on()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._text:
            self._emit(clean(self._text))

    def _pass_on(self) -> None:
        self._timer = None
        if self._text:
            self._emit(clean(self._text))
            self._text = ""
            self._timer = asyncio.get_running_loop().call_later(LIVE_INTERVAL_SECS, self._pass_on)


BASH = Tool(
    name="bash",
    description=(
        "Run a shell command in the workspace and return its exit code and output. There is no terminal and no "
        "standard input. Processes left in the background are ended when the command returns."
    ),
    arguments=Bash,
    run=run,
)
