"""`bash`: one shell command in the workspace, its output live and bounded, its whole tree gone at the end."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated, Any

from msgspec import Meta, Struct

from pawand.errors import ToolError
from pawand.tools.base import Emit, Tool, ToolContext
from pawand.tools.live import Live
from pawand.tools.output import HeadTail
from pawand.tools.pipes import drain

MAX_TIMEOUT_SECS = 3600


class Bash(Struct):
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
    live = Live(emit)
    timed_out = False
    start = context.sandbox.start(["bash", "-c", args.command], session_id=context.session_id, folder=args.workdir)
    with contextlib.closing(live):
        async with start as process:
            assert process.stdout is not None
            assert process.stderr is not None
            readers = asyncio.gather(
                drain(process.stdout, context.redactor.stream(), stdout, live.feed),
                drain(process.stderr, context.redactor.stream(), stderr, live.feed),
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


BASH = Tool(
    name="bash",
    description=(
        "Run a shell command in the workspace and return its exit code and output. There is no terminal and no "
        "standard input. Processes left in the background are ended when the command returns."
    ),
    arguments=Bash,
    run=run,
)
