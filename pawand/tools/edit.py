"""`edit_file`: replace a text that stands exactly once in a file, keeping its line endings."""

from __future__ import annotations

import asyncio
import difflib
from typing import Annotated, Any

from msgspec import Meta, Struct

from pawand.errors import ToolError
from pawand.tools.base import Emit, Tool, ToolContext
from pawand.tools.files import Path_, read_text
from pawand.tools.output import lines_of

MAX_COMPARED_LINES = 5000
MAX_COMPARED_CHARS = 200
NEAREST_CUTOFF = 0.6


class EditFile(Struct):
    path: Path_
    old_string: Annotated[str, Meta(min_length=1, description="Text to replace; it must stand exactly once")]
    new_string: Annotated[str | list[str], Meta(description="Text to put there")]
    replace_all: Annotated[bool, Meta(description="Replace every occurrence")] = False


async def edit_file(args: EditFile, context: ToolContext, emit: Emit) -> dict[str, Any]:
    return await asyncio.to_thread(_edit_file, args, context)


def _edit_file(args: EditFile, context: ToolContext) -> dict[str, Any]:
    text, stamp = read_text(args.path, context)
    new = args.new_string if isinstance(args.new_string, str) else "\n".join(args.new_string)
    old = args.old_string
    if "\r\n" in text and "\r\n" not in old:
        old, new = old.replace("\n", "\r\n"), new.replace("\r\n", "\n").replace("\n", "\r\n")
    count = text.count(old)
    first = text.find(old)
    if count == 0:
        raise ToolError(f"old_string does not stand in {args.path}.{_nearest(text, old)}")
    if not args.replace_all and text.find(old, first + 1) != -1:  # also where two of them overlap
        times = max(count, 2)
        raise ToolError(f"old_string stands {times} times in {args.path}: add lines around it, or set replace_all")
    edited = text.replace(old, new)
    if edited == text:
        raise ToolError("old_string and new_string are the same")
    if context.workspace.stamp(args.path) != stamp:
        raise ToolError(f"{args.path} changed while it was edited; try again")
    written = context.workspace.write(args.path, edited.encode("utf-8", "replace"))
    context.seen[context.workspace.identity(args.path)] = written
    return {
        "success": True,
        "path": args.path,
        "replacements": count,
        "diff": unified_diff(text, edited, args.path),
    }


def unified_diff(before: str, after: str, path: str) -> str:
    """A diff that `git apply` takes: changes of line endings and of the last newline are in it too."""
    lines = difflib.unified_diff(_whole_lines(before), _whole_lines(after), f"a/{path}", f"b/{path}")
    marked = (line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
    return "".join(marked).removesuffix("\n")


def _whole_lines(text: str) -> list[str]:
    *lines, last = text.split("\n")
    return [f"{line}\n" for line in lines] + ([last] if last else [])


def _nearest(text: str, wanted: str) -> str:
    """The lines that look most like the first line that was asked for."""
    first = next((line.strip() for line in lines_of(wanted) if line.strip()), "")[:MAX_COMPARED_CHARS]
    lines = [line[:MAX_COMPARED_CHARS] for line in lines_of(text)[:MAX_COMPARED_LINES]]
    near = difflib.get_close_matches(first, [line.strip() for line in lines], 3, NEAREST_CUTOFF)
    found = [f"{number}: {line}" for number, line in enumerate(lines, 1) if line.strip() in near][:3]
    return " The nearest lines are:\n" + "\n".join(found) if found else " Read the file again."


EDIT_FILE = Tool(
    name="edit_file",
    description=(
        "Replace old_string by new_string in a file. old_string must match the file exactly, white space included, "
        "and stand there once. Read the file first."
    ),
    arguments=EditFile,
    run=edit_file,
)
