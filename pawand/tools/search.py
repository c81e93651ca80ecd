"""`glob_search` and `grep_search`, by ripgrep in the sandbox; by a slower walk of our own where it is missing.

Ripgrep lists and searches, but globs are matched here: its own `--glob` brings back what `.gitignore` left out.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from pawand.errors import ToolError
from pawand.tools import globs, walk
from pawand.tools.base import Emit, Tool, ToolContext
from pawand.tools.output import clean, lines_of

MAX_FILES = 200
MAX_LINES = 50
MAX_LINES_PER_FILE = 30
MAX_COLUMNS = 400
TIMEOUT_SECS = 30
READ_BYTES = 64 * 1024
SLOW_NOTE = "ripgrep is not installed, so this was a slower search: apt install ripgrep"
_TOO_LONG = f"the search took more than {TIMEOUT_SECS} s: search a smaller folder"
_OMITTED = " [... omitted end of long line]"  # as ripgrep says it


class GlobSearch(Struct):
    pattern: Annotated[str, Meta(min_length=1, description="Glob such as *.py or src/**/test_*.rs")]
    path: Annotated[str, Meta(description="Folder to search, relative to the workspace")] = "."


class GrepSearch(Struct):
    pattern: Annotated[str, Meta(min_length=1, description="Regular expression, one line at a time")]
    path: Annotated[str, Meta(description="File or folder to search, relative to the workspace")] = "."
    include: Annotated[str, Meta(description="Only files that match this glob, such as *.py")] | None = None


class _Found:
    """The first `limit` answers, and how many there were."""

    def __init__(self, limit: int) -> None:
        self.first: list[str] = []
        self.count = 0
        self._limit = limit

    def add(self, answer: str) -> None:
        self.count += 1
        if len(self.first) < self._limit:
            self.first.append(clean(os.fsencode(answer).decode("utf-8", "replace")))


async def glob_search(args: GlobSearch, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{files, count}`, by name; `count` is of all that match."""
    place = await asyncio.to_thread(_look, args.path, context)
    if not place.is_folder:
        raise ToolError(f"{args.path} is no folder")
    matches = globs.matcher(args.pattern, place.path)
    found = _Found(MAX_FILES)
    if not place.has_ripgrep:
        await asyncio.to_thread(_glob, place, matches, context, found)
        return {"files": found.first, "count": found.count, "note": SLOW_NOTE}

    def take(record: bytes) -> None:
        path = _decoded(record)
        if matches(path):
            found.add(path)

    await _ripgrep(["--files"], place, context, b"\0", take)
    return {"files": found.first, "count": found.count}


async def grep_search(args: GrepSearch, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{results, count}` with lines `path:number:text`; `count` is of those found before the caps."""
    place = await asyncio.to_thread(_look, args.path, context)
    matches = globs.matcher(args.include, place.path) if args.include and place.is_folder else lambda path: True
    found = _Found(MAX_LINES)
    if not place.has_ripgrep:
        await asyncio.to_thread(_grep, args.pattern, place, matches, context, found)
        return {"results": found.first, "count": found.count, "note": SLOW_NOTE}

    def take(record: bytes) -> None:
        name, mark, line = record.partition(b"\0")
        path = _decoded(name)
        if mark and matches(path):  # without the mark it is a remark on a binary file
            found.add(f"{path}:{_decoded(line)}".removesuffix("\r"))

    options = ["--line-number", "--no-heading", "--with-filename", "--crlf", f"--max-count={MAX_LINES_PER_FILE}"]
    options += [f"--max-columns={MAX_COLUMNS}", "--max-columns-preview", "--regexp", args.pattern]
    await _ripgrep(options, place, context, b"\n", take)
    return {"results": found.first, "count": found.count}


class _Place(Struct, frozen=True):
    """Where a search begins. `ignore_files` are the `.gitignore` files of the folders above it, from the root down."""

    path: str
    is_folder: bool
    has_ripgrep: bool
    ignore_files: list[str]


def _look(path: str, context: ToolContext) -> _Place:
    root = context.workspace.root
    real = context.workspace.resolve(path)
    above = [str(folder / ".gitignore") for folder in reversed(Path(real).parents)]
    return _Place(
        real,
        (root / real).is_dir(),
        shutil.which("rg") is not None,
        [file for file in above if (root / file).is_file()],
    )


async def _ripgrep(
    options: list[str], place: _Place, context: ToolContext, end: bytes, take: Callable[[bytes], None]
) -> None:
    """Give each record of ripgrep's output to `take`. Raises ToolError with ripgrep's own words if it finds nothing."""
    command = ["rg", "--no-config", "--color=never", "--null", "--sort=path", "--no-require-git", "--glob=!.git"]
    # Up to 14.1 ripgrep mistakes rules with a slash in the files above, and it would read those outside too.
    command += ["--no-ignore-parent", *(f"--ignore-file={file}" for file in place.ignore_files)]
    command += [*options, "--", os.path.join(".", place.path)]
    async with context.sandbox.start(command, session_id=context.session_id) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        readers = asyncio.gather(_records(process.stdout, end, take), _beginning(process.stderr))
        try:
            async with asyncio.timeout(TIMEOUT_SECS):
                taken, complaint = await readers
                await process.wait()
        except TimeoutError as error:
            raise ToolError(_TOO_LONG) from error
    if process.returncode not in (0, 1) and not taken:
        raise ToolError(clean(complaint.decode("utf-8", "replace")).strip() or "ripgrep failed")


async def _records(stream: asyncio.StreamReader, end: bytes, take: Callable[[bytes], None]) -> int:
    """How many there were."""
    count = 0
    rest = b""
    while data := await stream.read(READ_BYTES):
        *records, rest = (rest + data).split(end)
        count += len(records)
        await asyncio.to_thread(_take_all, take, records)  # a hard glob is slow to match
    return count


def _take_all(take: Callable[[bytes], None], records: list[bytes]) -> None:
    for record in records:
        take(record)


async def _beginning(stream: asyncio.StreamReader) -> bytes:
    """The first kilobyte; all of it is read."""
    kept = b""
    while data := await stream.read(READ_BYTES):
        kept = (kept + data)[:1000]
    return kept


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "replace").removeprefix("./").removeprefix("./")


# --- without ripgrep ------------------------------------------------------------------------------


def _glob(place: _Place, matches: globs.Matcher, context: ToolContext, found: _Found) -> None:
    for path in _files(place, matches, context):
        found.add(path)


def _grep(pattern: str, place: _Place, matches: globs.Matcher, context: ToolContext, found: _Found) -> None:
    try:
        expression = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ToolError(f"bad regular expression: {error}") from error
    for path in _in_time(_files(place, matches, context) if place.is_folder else [place.path]):
        try:
            data, _ = context.workspace.read(path)
        except ToolError:
            continue
        if b"\0" in data:
            continue
        lines = enumerate(lines_of(data.decode("utf-8-sig", "replace")), 1)
        hits = ((number, line) for number, line in lines if expression.search(line))
        for number, line in itertools.islice(hits, MAX_LINES_PER_FILE):
            found.add(f"{path}:{number}:{line[:MAX_COLUMNS]}{_OMITTED if len(line) > MAX_COLUMNS else ''}")


def _files(place: _Place, matches: globs.Matcher, context: ToolContext) -> list[str]:
    """In the order in which ripgrep goes through folders."""
    found = _in_time(walk.files(context.workspace, place.path, place.ignore_files))
    return sorted(filter(matches, found), key=lambda path: path.split("/"))


def _in_time(paths: Iterable[str]) -> Iterator[str]:
    deadline = time.monotonic() + TIMEOUT_SECS
    for path in paths:
        if time.monotonic() > deadline:
            raise ToolError(_TOO_LONG)
        yield path


GLOB_SEARCH = Tool(
    name="glob_search",
    description="Find files by name with a glob. Hidden files and what .gitignore names are left out.",
    arguments=GlobSearch,
    run=glob_search,
    read_only=True,
)
GREP_SEARCH = Tool(
    name="grep_search",
    description="Search the text of files with a regular expression; answers path:line:text.",
    arguments=GrepSearch,
    run=grep_search,
    read_only=True,
)
