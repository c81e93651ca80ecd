"""`glob_search` and `grep_search`, by ripgrep in the sandbox; by a slower walk of our own where it is missing.

Ripgrep lists and searches, but globs are matched here: its own `--glob` brings back what `.gitignore` left out.
"""

from __future__ import annotations

import asyncio
import os
from typing import Annotated, Any

from msgspec import Meta, Struct

from pawand.errors import ToolError
from pawand.tools import globs, matching
from pawand.tools.base import Emit, Tool, ToolContext
from pawand.tools.matcher import MAX_COLUMNS, OMITTED
from pawand.tools.matcher import MAX_LINES as MAX_LINES_PER_FILE
from pawand.tools.output import clean
from pawand.tools.places import MAX_RECORD_BYTES, look, plain, ripgrep, walked

MAX_FILES = 200
MAX_LINES = 50
SLOW_NOTE = "ripgrep is not installed, so this was a slower search: apt install ripgrep"


class GlobSearch(Struct):
    pattern: Annotated[str, Meta(min_length=1, max_length=1000, description="Glob such as *.py or src/**/test_*.rs")]
    path: Annotated[str, Meta(description="Folder to search, relative to the workspace")] = "."


class GrepSearch(Struct):
    pattern: Annotated[str, Meta(min_length=1, description="Regular expression, one line at a time")]
    path: Annotated[str, Meta(description="File or folder to search, relative to the workspace")] = "."
    include: (
        Annotated[str, Meta(max_length=1000, description="Only files that match this glob, such as *.py")] | None
    ) = None


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
    place = await asyncio.to_thread(look, args.path, context)
    if not place.is_folder:
        raise ToolError(f"{args.path} is no folder")
    matches = globs.matcher(args.pattern, place.path)
    found = _Found(MAX_FILES)
    if not place.has_ripgrep:
        for path in await asyncio.to_thread(walked, place, matches, context):
            found.add(path)
        return {"files": found.first, "count": found.count, "note": SLOW_NOTE}

    def take(record: bytes) -> None:
        path = _decoded(record)
        if matches(path):
            found.add(path)

    await ripgrep(["--files"], place, context, b"\0", take)
    return {"files": found.first, "count": found.count}


async def grep_search(args: GrepSearch, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{results, count}` with lines `path:number:text`; `count` is of those found before the caps."""
    place = await asyncio.to_thread(look, args.path, context)
    matches = globs.matcher(args.include, place.path) if args.include and place.is_folder else lambda path: True
    found = _Found(MAX_LINES)
    if not place.has_ripgrep:
        paths = await asyncio.to_thread(walked, place, matches, context) if place.is_folder else [place.path]
        await matching.search(
            args.pattern, paths, context, lambda path, number, line: found.add(f"{path}:{number}:{line}")
        )
        return {"results": found.first, "count": found.count, "note": SLOW_NOTE}

    def take(record: bytes) -> None:
        name, mark, line = record.partition(b"\0")
        path = _decoded(name)
        if mark and matches(path):  # without the mark it is a remark on a binary file
            note = OMITTED if len(record) == MAX_RECORD_BYTES else ""
            found.add(f"{path}:{_decoded(line)}".removesuffix("\r") + note)

    options = ["--line-number", "--no-heading", "--with-filename", "--crlf", f"--max-count={MAX_LINES_PER_FILE}"]
    options += [f"--max-columns={MAX_COLUMNS}", "--max-columns-preview", "--regexp", args.pattern]
    await ripgrep(options, place, context, b"\n", take)
    return {"results": found.first, "count": found.count}


def _decoded(data: bytes) -> str:
    return plain(data.decode("utf-8", "replace"))


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
