"""The one way in which a text file is changed: read, planned, checked, written whole, shown as a diff."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Sequence
from typing import Any

from pawand.errors import ToolError
from pawand.tools.base import ToolContext
from pawand.tools.diffs import Edit, apply, unified_diff
from pawand.tools.files import read_text
from pawand.tools.output import clean, lines_of
from pawand.tools.workspace import MAX_FILE_BYTES, MissingError, Stamp

MAX_LINES = 1_000_000  # each takes memory of its own
MAX_COMPARED_LINES = 5000
MAX_COMPARED_CHARS = 200
NEAREST_CUTOFF = 0.6
NEAREST_LINES = 3
NEAREST_SECS = 0.5

Plan = Callable[[str], Sequence[Edit]]
"""Takes the text of a file and returns the edits, in order, or raises ToolError."""


def change(path: str, context: ToolContext, plan: Plan, *, make: bool = False) -> dict[str, Any]:
    """Carry out a plan. Returns `{success, path, diff}`. With `make` a missing file is taken as empty. Blocks."""
    before, stamp = _read(path, context, make=make)
    if before.count("\n") > MAX_LINES:
        raise ToolError(f"{path} has more than {MAX_LINES} lines: use bash with sed")
    edits = plan(before)
    size = len(before) + sum(len(edit.new) - edit.end + edit.start for edit in edits)
    if size > MAX_FILE_BYTES:  # told before the text is made: it could fill the memory
        raise ToolError(f"{path} would grow to {size} characters, more than {MAX_FILE_BYTES}: write a smaller text")
    if any("\0" in edit.new for edit in edits):
        raise ToolError("the new text holds a NUL character, which would make the file a binary one")
    edits = [Edit(edit.start, edit.end, valid(edit.new)) for edit in edits]
    data = apply(before, edits).encode()
    if len(data) > MAX_FILE_BYTES:
        raise ToolError(f"{path} would grow to {len(data)} bytes, more than {MAX_FILE_BYTES}: write a smaller text")
    if context.workspace.stamp(path) != stamp:
        raise ToolError(f"{path} changed while it was edited; try again")
    written = context.workspace.write(path, data)
    context.seen[context.workspace.identity(path)] = written
    shown = clean(path)
    return {"success": True, "path": shown, "diff": unified_diff(before, edits, shown)}


def valid(text: str) -> str:
    """Text that UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode()


def nearest(text: str, wanted: str) -> str:
    """The lines that look most like the first line that was asked for, or the advice to read the file."""
    first = next((line.strip() for line in lines_of(wanted) if line.strip()), "")[:MAX_COMPARED_CHARS]
    lines = [line[:MAX_COMPARED_CHARS] for line in lines_of(text)[:MAX_COMPARED_LINES]]
    matcher = difflib.SequenceMatcher(b=first, autojunk=False)
    deadline = time.monotonic() + NEAREST_SECS
    near: list[tuple[float, int]] = []
    for number, line in enumerate(lines, 1):
        if time.monotonic() > deadline:
            break
        matcher.set_seq1(line.strip())
        if matcher.real_quick_ratio() >= NEAREST_CUTOFF and matcher.quick_ratio() >= NEAREST_CUTOFF:
            near.append((-matcher.ratio(), number))
    best = sorted(number for ratio, number in sorted(near)[:NEAREST_LINES] if -ratio >= NEAREST_CUTOFF)
    found = [f"{number}: {lines[number - 1]}" for number in best]
    return " The nearest lines are:\n" + "\n".join(found) if found else " Read the file again."


def _read(path: str, context: ToolContext, *, make: bool) -> tuple[str, Stamp | None]:
    try:
        return read_text(path, context)
    except MissingError:
        if not make:
            raise
        return "", None
