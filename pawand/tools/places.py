"""Where a search begins and which files lie below: asked of ripgrep in the sandbox, or walked where it is missing."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from pawand.errors import ToolError
from pawand.tools import globs, walk
from pawand.tools.base import ToolContext
from pawand.tools.output import clean

TIMEOUT_SECS = 30
READ_BYTES = 64 * 1024
MAX_RECORD_BYTES = 16 * 1024  # longer than any path with the columns that are asked for
TOO_LONG = f"the search took more than {TIMEOUT_SECS} s: search a smaller folder"


class Place(Struct, frozen=True):
    """Where a search begins. `ignore_files` are the `.gitignore` files of the folders above it, from the root down."""

    path: str
    is_folder: bool
    has_ripgrep: bool
    ignore_files: list[str]


def look(path: str, context: ToolContext) -> Place:
    """Blocks."""
    root = context.workspace.root
    real = context.workspace.resolve(path)
    above = [str(folder / ".gitignore") for folder in reversed(Path(real).parents)]
    return Place(
        real,
        (root / real).is_dir(),
        shutil.which("rg") is not None,
        [file for file in above if (root / file).is_file()],
    )


async def files_at(place: Place, context: ToolContext) -> list[str]:
    """The files of a folder that a search goes through, in the order of ripgrep."""
    if not place.has_ripgrep:
        return await asyncio.to_thread(walked, place, lambda path: True, context)
    found: list[str] = []
    await ripgrep(["--files"], place, context, b"\0", lambda record: found.append(plain(os.fsdecode(record))))
    return found


async def ripgrep(
    options: list[str], place: Place, context: ToolContext, end: bytes, take: Callable[[bytes], None]
) -> None:
    """Give each record of ripgrep's output to `take`. Raises ToolError with ripgrep's own words if it finds nothing."""
    command = ["rg", "--no-config", "--color=never", "--null", "--sort=path", "--no-require-git", "--glob=!.git"]
    # Up to 14.1 ripgrep mistakes rules with a slash in the files above, and it would read those outside too.
    command += ["--no-ignore-parent", *(f"--ignore-file={file}" for file in place.ignore_files)]
    command += [*options, "--", os.path.join(".", place.path)]
    async with context.sandbox.start(command, session_id=context.session_id) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        readers = asyncio.gather(records(process.stdout, end, take), beginning(process.stderr))
        try:
            async with asyncio.timeout(TIMEOUT_SECS):
                taken, complaint = await readers
                await process.wait()
        except TimeoutError as error:
            raise ToolError(TOO_LONG) from error
    if process.returncode not in (0, 1) and not taken:
        raise ToolError(clean(complaint.decode("utf-8", "replace")).strip() or "ripgrep failed")


async def records(stream: asyncio.StreamReader, end: bytes, take: Callable[[bytes], None]) -> int:
    """Give each piece of a stream that `end` ends to `take`, in a thread. How many there were.

    Of a long one it gets the first MAX_RECORD_BYTES: to ripgrep a column may have any number of combining marks.
    """
    count = 0
    rest = b""
    while data := await stream.read(READ_BYTES):
        first, *more = data.split(end)
        pieces = [rest + first, *more]
        rest = pieces.pop()[:MAX_RECORD_BYTES]
        if pieces:
            count += len(pieces)
            await asyncio.to_thread(_take_all, take, pieces)  # a hard glob is slow to match
    return count


def _take_all(take: Callable[[bytes], None], pieces: list[bytes]) -> None:
    for piece in pieces:
        take(piece[:MAX_RECORD_BYTES])


async def beginning(stream: asyncio.StreamReader) -> bytes:
    """The first kilobyte; all of it is read."""
    kept = b""
    while data := await stream.read(READ_BYTES):
        kept = (kept + data)[:1000]
    return kept


def plain(path: str) -> str:
    """Without the dots that a program puts before the paths it was given."""
    return path.removeprefix("./").removeprefix("./")


def walked(place: Place, matches: globs.Matcher, context: ToolContext) -> list[str]:
    """What `files_at` answers without ripgrep. Blocks."""
    found = walk.files(context.workspace, place.path, place.ignore_files, time.monotonic() + TIMEOUT_SECS)
    try:
        return sorted(filter(matches, found), key=lambda path: path.split("/"))
    except TimeoutError as error:
        raise ToolError(TOO_LONG) from error
