"""`insert_after` and `append_file`: new lines behind a line, behind a block, at the end of a file."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from msgspec import Meta, Struct

from pawand.errors import ToolError
from pawand.tools import braces
from pawand.tools.base import Emit, Tool, ToolContext
from pawand.tools.changes import change
from pawand.tools.diffs import Edit
from pawand.tools.files import Path_
from pawand.tools.textlines import Lines, find_anchor, new_lines

Content = Annotated[str | list[str], Meta(description="The new lines")]


class InsertAfter(Struct):
    path: Path_
    anchor_text: Annotated[str, Meta(description="Whole line, or lines in a row, to find; they must stand once")]
    content: Content


class AppendFile(Struct):
    path: Path_
    content: Content


async def insert_after(args: InsertAfter, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{success, path, diff, anchor_line, inserted_after_line, block_skipped, lines_inserted}`."""
    return await asyncio.to_thread(_insert_after, args, context)


def _insert_after(args: InsertAfter, context: ToolContext) -> dict[str, Any]:
    added = _added(args.content)
    anchor = after = last = 0

    def plan(text: str) -> list[Edit]:
        nonlocal anchor, after, last
        lines = Lines(text)
        anchor, last = find_anchor(text, args.anchor_text, args.path)
        after = _behind_block(text, lines, last, args.path)
        return [lines.insert_after(after, args.content)]

    result = change(args.path, context, plan)
    return result | {
        "anchor_line": anchor,
        "inserted_after_line": after,
        "block_skipped": after > last,
        "lines_inserted": added,
    }


def _behind_block(text: str, lines: Lines, number: int, path: str) -> int:
    """The last line of the block that the line opens, and of those that go on from it (`} else {`); else the line."""
    at = number
    while True:
        line = lines.line(at)
        bare = text[line.start : line.end].rstrip()
        if not bare.endswith("{"):
            return at
        end = braces.closing(text, line.start, line.start + len(bare) - 1, path)
        if end is None:
            return at
        at += text.count("\n", line.end, end)


async def append_file(args: AppendFile, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{success, path, diff, lines_appended, total_lines}`."""
    return await asyncio.to_thread(_append_file, args, context)


def _append_file(args: AppendFile, context: ToolContext) -> dict[str, Any]:
    added = _added(args.content)
    before = 0

    def plan(text: str) -> list[Edit]:
        nonlocal before
        lines = Lines(text)
        before = len(lines)
        edit = lines.insert_after(before, args.content)
        if text.endswith("\n") or not before or not _ends_line(args.content):
            return [edit]
        return [Edit(edit.start, edit.end, edit.new + lines.ending_near(before, args.content))]

    result = change(args.path, context, plan, make=True)
    return result | {"lines_appended": added, "total_lines": before + added}


def _added(content: str | list[str]) -> int:
    count = len(new_lines(content))
    if not count:
        raise ToolError("content is empty: there is nothing to insert")
    return count


def _ends_line(content: str | list[str]) -> bool:
    return isinstance(content, str) and content.endswith("\n")


INSERT_AFTER = Tool(
    name="insert_after",
    description=(
        "Insert new lines into a file behind the line that anchor_text is. If that line ends with { they come behind "
        "the block that it opens, that is after the matching }; to put lines at the beginning of a block use edit_file."
    ),
    arguments=InsertAfter,
    run=insert_after,
)
APPEND_FILE = Tool(
    name="append_file",
    description="Add lines at the end of a file; makes the file where it is missing. Needs no reading first.",
    arguments=AppendFile,
    run=append_file,
)
