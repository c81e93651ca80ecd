"""`edit_file`: replace a text that stands exactly once in a file, keeping its line endings."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from msgspec import Meta, Struct

from pawand.errors import ToolError
from pawand.tools.base import Emit, Tool, ToolContext
from pawand.tools.changes import change, nearest, valid
from pawand.tools.diffs import Edit
from pawand.tools.files import Path_

MAX_REPLACEMENTS = 100_000  # each takes memory of its own


class EditFile(Struct):
    path: Path_
    old_string: Annotated[str, Meta(min_length=1, description="Text to replace; it must stand exactly once")]
    new_string: Annotated[str | list[str], Meta(description="Text to put there")]
    replace_all: Annotated[bool, Meta(description="Replace every occurrence")] = False


async def edit_file(args: EditFile, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{success, path, diff, replacements}`."""
    return await asyncio.to_thread(_edit_file, args, context)


def _edit_file(args: EditFile, context: ToolContext) -> dict[str, Any]:
    count = 0

    def plan(text: str) -> list[Edit]:
        nonlocal count
        edits = _plan(args, text)
        count = len(edits)
        return edits

    return change(args.path, context, plan) | {"replacements": count}


def _plan(args: EditFile, text: str) -> list[Edit]:
    old = args.old_string
    new = valid(args.new_string if isinstance(args.new_string, str) else "\n".join(args.new_string))
    if "\r\n" not in old and old not in text:
        old = old.replace("\n", "\r\n")
    first = text.find(old)
    if first == -1:
        raise ToolError(f"old_string does not stand in {args.path}.{nearest(text, args.old_string)}")
    if not args.replace_all and text.find(old, first + 1) != -1:  # also where two of them overlap
        times = max(text.count(old), 2)
        raise ToolError(f"old_string stands {times} times in {args.path}: add lines around it, or set replace_all")
    explicit = "\r\n" in args.old_string and "\r\n" in new
    if not explicit and _ends_with_crlf(text, first):
        new = new.replace("\r\n", "\n").replace("\n", "\r\n")
    if old == new:
        raise ToolError("old_string and new_string are the same")
    edits: list[Edit] = []
    while first != -1:
        if len(edits) == MAX_REPLACEMENTS:
            raise ToolError(f"old_string stands more than {MAX_REPLACEMENTS} times in {args.path}: use bash with sed")
        edits.append(Edit(first, first + len(old), new))
        first = text.find(old, first + len(old))
    return edits


def _ends_with_crlf(text: str, start: int) -> bool:
    """Whether the line that is edited, or the one before it where it is the last, ends so."""
    end = text.find("\n", start)
    if end == -1:
        end = text.rfind("\n", 0, start)
    return text[max(end - 1, 0) : end + 1] == "\r\n"


EDIT_FILE = Tool(
    name="edit_file",
    description=(
        "Replace old_string by new_string in a file: the tool for most changes. old_string must match the file "
        "exactly, white space included, and stand there once. Read the file first."
    ),
    arguments=EditFile,
    run=edit_file,
)
