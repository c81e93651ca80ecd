"""`edit_file_lines`: replace whole lines of a file, by their numbers or by an anchor."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from msgspec import Meta, Struct

from pawand.errors import ToolError
from pawand.tools.base import Emit, Tool, ToolContext
from pawand.tools.changes import change
from pawand.tools.diffs import Edit
from pawand.tools.files import Path_
from pawand.tools.textlines import Lines, find_anchor, new_lines

Number = Annotated[int, Meta(ge=1)]
HOW = "give start_line and end_line, or anchor_text (with anchor_count if need be), and not both"


class EditFileLines(Struct):
    path: Path_
    new_content: Annotated[str | list[str], Meta(description="The new lines; an empty text removes the old ones")]
    start_line: Annotated[Number, Meta(description="First line to replace, counted from 1")] | None = None
    end_line: Annotated[Number, Meta(description="Last line to replace")] | None = None
    anchor_text: (
        Annotated[str, Meta(description="Whole line, or lines in a row, to find; they must stand once")] | None
    ) = None
    anchor_count: (
        Annotated[
            Number,
            Meta(description="How many lines to replace from the anchor's first on; as many as it has, if not set"),
        ]
        | None
    ) = None


async def edit_file_lines(args: EditFileLines, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{success, path, diff, lines_replaced, new_line_count}`."""
    return await asyncio.to_thread(_edit_file_lines, args, context)


def _edit_file_lines(args: EditFileLines, context: ToolContext) -> dict[str, Any]:
    by_number = args.start_line is not None and args.end_line is not None
    by_half = (args.start_line is None) != (args.end_line is None)
    by_anchor = args.anchor_text is not None
    if by_half or by_number == by_anchor or (args.anchor_count is not None and not by_anchor):
        raise ToolError(HOW)
    if by_number:
        _check_numbers(args, context)
    replaced = 0

    def plan(text: str) -> list[Edit]:
        nonlocal replaced
        lines = Lines(text)
        first, last = _range(args, text, len(lines))
        edit = lines.replace(first, last, args.new_content)
        if edit.new == text[edit.start : edit.end]:
            raise ToolError(f"lines {first} to {last} of {args.path} are already so")
        replaced = last - first + 1
        return [edit]

    result = change(args.path, context, plan)
    return result | {"lines_replaced": replaced, "new_line_count": len(new_lines(args.new_content))}


def _check_numbers(args: EditFileLines, context: ToolContext) -> None:
    """Numbers mean the file that the model saw."""
    seen = context.seen.get(context.workspace.identity(args.path))
    if seen is not None and seen != context.workspace.stamp(args.path):
        raise ToolError(f"{args.path} changed on disk since it was read: read it again for the numbers of its lines")


def _range(args: EditFileLines, text: str, total: int) -> tuple[int, int]:
    if args.anchor_text is not None:
        first, last = find_anchor(text, args.anchor_text, args.path)
        if args.anchor_count is not None:
            last = first + args.anchor_count - 1
    else:
        assert args.start_line is not None
        assert args.end_line is not None
        first, last = args.start_line, args.end_line
    if last < first:
        raise ToolError(f"end_line {last} is before start_line {first}")
    if last > total:
        raise ToolError(f"{args.path} has {total} lines, so there is no line {max(first, total + 1)}")
    return first, last


EDIT_FILE_LINES = Tool(
    name="edit_file_lines",
    description=(
        "Replace whole lines of a file, either start_line to end_line as read_file numbers them, or those found by "
        "anchor_text. Better than edit_file for long pieces, or to remove lines (empty new_content). Every edit "
        "moves the numbers of the lines below it: work from the end of the file up, or read it again."
    ),
    arguments=EditFileLines,
    run=edit_file_lines,
)
