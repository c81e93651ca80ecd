"""Regular expressions of Python, run in a child: a hostile one would hold the interpreter, and with it the daemon."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from pawand.errors import ToolError
from pawand.tools import matcher, places
from pawand.tools.base import ToolContext
from pawand.tools.output import clean

MAX_PATTERN_CHARS = 10_000
Take = Callable[[str, int, str], None]
"""Takes a line that was found: path, number, text."""
_PROBLEM = msgspec.json.Decoder(str | None)
_LINES = msgspec.json.Decoder(list[tuple[int, str]])


async def search(pattern: str, paths: Iterable[str], context: ToolContext, take: Take) -> None:
    """Give the lines that match to `take`, files in order, those passed over that are no text. Raises ToolError."""
    if len(pattern) > MAX_PATTERN_CHARS:
        raise ToolError(f"the regular expression is longer than {MAX_PATTERN_CHARS} characters")
    source = await asyncio.to_thread(Path(matcher.__file__).read_text, encoding="utf-8")
    command = [sys.executable, "-I", "-S", "-c", source]
    slow = ""  # what the child is at, while it is
    async with context.sandbox.start(command, session_id=context.session_id, stdin=True) as process:
        assert process.stderr is not None
        complaints = asyncio.create_task(places.beginning(process.stderr))
        try:
            async with asyncio.timeout(places.TIMEOUT_SECS):
                slow = "to be understood"
                answer = await _ask(process, pattern.encode("utf-8", "surrogatepass"))
                if (problem := _PROBLEM.decode(answer)) is not None:
                    raise ToolError(f"bad regular expression: {problem}")
                for path in paths:
                    slow = ""
                    data = await asyncio.to_thread(_read, path, context)
                    if data is None:
                        continue
                    slow = f"for {path}"
                    for number, line in _LINES.decode(await _ask(process, data)):
                        take(path, number, line)
        except TimeoutError as error:
            raise ToolError(_too_slow(slow) if slow else places.TOO_LONG) from error
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            said = clean((await complaints).decode("utf-8", "replace")).strip().rpartition("\n")[2]
            raise ToolError(f"the search failed: {said or 'its process ended'}") from error
        finally:
            complaints.cancel()
            await asyncio.wait([complaints])


async def _ask(process: asyncio.subprocess.Process, data: bytes) -> bytes:
    """The child's answer to a frame. A frame is taken whole before it is answered, so neither waits for the other."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(matcher.LENGTH.pack(len(data)) + data)
    await process.stdin.drain()
    head = await process.stdout.readexactly(matcher.LENGTH.size)
    return await process.stdout.readexactly(matcher.LENGTH.unpack(head)[0])


def _read(path: str, context: ToolContext) -> bytes | None:
    try:
        data, _ = context.workspace.read(path)
    except ToolError:
        return None
    return None if b"\0" in data else data


def _too_slow(what: str) -> str:
    return (
        f"the regular expression is too slow {what}: it was given up after {places.TIMEOUT_SECS} s. "
        "Write it without repetitions in repetitions, such as (a+)+, or search fewer files"
    )
