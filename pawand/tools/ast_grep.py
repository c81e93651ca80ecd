"""`ast_grep`: search and rewrite code by its structure, with the program of that name.

The program only finds. What is shown is read, and what is rewritten is written, through the workspace boundary.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from pawand.errors import ToolError
from pawand.tools import places
from pawand.tools.base import Emit, Tool, ToolContext
from pawand.tools.changes import change
from pawand.tools.diffs import Edit
from pawand.tools.files import Path_, read_text
from pawand.tools.output import clean

TIMEOUT_SECS = 30
MAX_SHOWN = 50
MAX_SHOWN_CHARS = 400
MAX_MATCHES = 10_000
MAX_OUTPUT_BYTES = 256 * 1024 * 1024
MAX_RECORD_BYTES = 32 * 1024 * 1024
MAX_ARGUMENT_BYTES = 256 * 1024  # of the paths of one start; Linux takes 2 MiB with the environment
READ_BYTES = 1024 * 1024
MISSING = "ast-grep is not installed: pip install 'pawand[ast-grep]', or cargo install ast-grep; or use grep_search"
_TOO_LONG = f"ast-grep took more than {TIMEOUT_SECS} s: give a smaller folder or a simpler pattern"
_TOO_MUCH = "ast-grep found too much to be read: give a smaller folder or a narrower pattern"


class AstGrep(Struct):
    action: Literal["search", "rewrite"]
    pattern: Annotated[str, Meta(min_length=1, description="Code with $NAME for one node, $$$NAME for any number")]
    path: Annotated[Path_, Meta(description="File or folder, relative to the workspace")]
    rewrite: Annotated[str, Meta(description="Code to put there, with the same $NAMEs; for rewrite only")] | None = None
    lang: (
        Annotated[str, Meta(min_length=1, description="Only files of this language, such as python or rust")] | None
    ) = None


class _Span(Struct):
    start: int
    end: int


class _Range(Struct):
    bytes: _Span = field(name="byteOffset")


class _Match(Struct):
    """A line of ast-grep's output, as far as it counts here."""

    file: str
    text: str
    range: _Range
    replacement: str = ""
    replaced: _Span | None = field(name="replacementOffsets", default=None)

    @property
    def span(self) -> _Span:
        """What a rewrite replaces."""
        return self.replaced or self.range.bytes


class _Found(Struct):
    """The matches kept, by file and place, and how many there were."""

    matches: list[_Match]
    count: int = 0
    complaint: str = ""


async def ast_grep(args: AstGrep, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Search returns `{success, action, matches, results: [{path, line, text}]}`; `matches` is how many there are.

    Rewrite returns `{success, action, matches, files: [{path, replacements, diff}]}`, and `failed: [{path, error}]`
    where a file could not be rewritten.
    """
    if (args.action == "rewrite") != (args.rewrite is not None):
        raise ToolError("the text rewrite goes with the action rewrite, and with no other")
    command = await asyncio.to_thread(_command, args)
    try:
        async with asyncio.timeout(TIMEOUT_SECS):
            files = await _files(args.path, context)
            found = await _search(command, files, context)
    except TimeoutError as error:
        raise ToolError(_TOO_LONG) from error
    if args.action == "search":
        result = await asyncio.to_thread(_show, found, context)
    else:
        result = await asyncio.to_thread(_rewrite, found, context)
    if found.complaint and not found.count:
        result["note"] = found.complaint
    return {"success": not result.get("failed"), "action": args.action, "matches": found.count} | result


def _command(args: AstGrep) -> list[str]:
    beside = str(Path(sys.executable).parent)
    program = shutil.which("ast-grep") or shutil.which("ast-grep", path=beside)
    if program is None:
        raise ToolError(MISSING)
    for name in ("pattern", "rewrite", "lang"):
        _check_text(name, getattr(args, name) or "")
    # A workspace's sgconfig.yml may name libraries to load, so it is not read.
    command = [program, "run", "--json=stream", "--color=never", f"--config={os.devnull}", f"--pattern={args.pattern}"]
    command += [f"--rewrite={args.rewrite}"] if args.rewrite is not None else []
    command += [f"--lang={args.lang}"] if args.lang is not None else []
    return [*command, "--"]


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ToolError(f"{name} is no valid text") from error
    if "\0" in text:
        raise ToolError(f"{name} holds a NUL character")


async def _files(path: str, context: ToolContext) -> list[str]:
    """Those that grep_search would search too: ast-grep has ideas of its own about `.gitignore`."""
    place = await asyncio.to_thread(places.look, path, context)
    if place.is_folder:
        return await places.files_at(place, context)
    await asyncio.to_thread(read_text, path, context)  # says what is wrong with a file that was asked for by name
    return [place.path]


async def _search(command: list[str], files: list[str], context: ToolContext) -> _Found:
    order = {os.fsencode(file).decode("utf-8", "replace"): number for number, file in enumerate(files)}
    found = _Found([])
    for some in _batches(files):
        await _run([*command, *some], order, found, context)
    found.matches.sort(key=lambda match: (order[match.file], match.range.bytes.start, -match.range.bytes.end))
    for match in found.matches:
        match.file = files[order[match.file]]
    return found


def _batches(files: list[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for file in files:
        if batch and size > MAX_ARGUMENT_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(f"./{file}")
        size += len(os.fsencode(file)) + 16
    if batch:
        yield batch


async def _run(command: list[str], order: dict[str, int], found: _Found, context: ToolContext) -> None:
    """Add what one start finds. Raises ToolError with ast-grep's own words where it fails."""
    async with context.sandbox.start(command, session_id=context.session_id) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        complaints = asyncio.create_task(places.beginning(process.stderr))
        try:
            await _collect(process.stdout, order, found)
            complaint = clean((await complaints).decode("utf-8", "replace")).strip()
            await process.wait()
        finally:
            complaints.cancel()
            await asyncio.wait([complaints])
    if process.returncode not in (0, 1):
        raise ToolError(complaint or f"ast-grep ended with status {process.returncode}")
    found.complaint = found.complaint or complaint


async def _collect(stream: asyncio.StreamReader, order: dict[str, int], found: _Found) -> None:
    """Take in the output, a match on each line."""
    pieces: list[bytes] = []  # of the line that has not ended
    total = waiting = 0
    while data := await stream.read(READ_BYTES):
        total += len(data)
        head, newline, rest = data.rpartition(b"\n")
        if newline:
            await asyncio.to_thread(_take, b"".join([*pieces, head]), order, found)
            pieces, waiting = [], 0
        pieces.append(rest)
        waiting += len(rest)
        if total > MAX_OUTPUT_BYTES or waiting > MAX_RECORD_BYTES:
            raise ToolError(_TOO_MUCH)


def _take(lines: bytes, order: dict[str, int], found: _Found) -> None:
    for line in lines.split(b"\n"):
        try:
            match = _DECODER.decode(line)
        except msgspec.DecodeError as error:
            raise ToolError(f"this version of ast-grep answers in a way that is not understood: {error}") from error
        match.file = places.plain(match.file)
        if match.file in order:
            found.count += 1
            if len(found.matches) < MAX_MATCHES:
                found.matches.append(match)


_DECODER = msgspec.json.Decoder(_Match)


# --- what is made of the matches ------------------------------------------------------------------


def _show(found: _Found, context: ToolContext) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    for path, matches in itertools.groupby(found.matches, lambda match: match.file):
        try:
            data = read_text(path, context)[0].encode()
        except ToolError:
            continue
        for match in itertools.islice(matches, MAX_SHOWN - len(results)):
            if _stands(match, data):
                line = data.count(b"\n", 0, match.range.bytes.start) + 1
                results.append({"path": clean(path), "line": line, "text": _short(match.text)})
        if len(results) >= MAX_SHOWN:
            break
    return {"results": results}


def _stands(match: _Match, data: bytes) -> bool:
    """Whether the file that we read holds what ast-grep saw: it may have changed, or not be the same one."""
    return data[match.range.bytes.start : match.range.bytes.end] == match.text.encode()


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"


def _rewrite(found: _Found, context: ToolContext) -> dict[str, Any]:
    if found.count > MAX_MATCHES:
        raise ToolError(f"{found.count} matches are too many to rewrite, nothing was: give a smaller folder")
    files: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    left = 0
    for path, group in itertools.groupby(found.matches, lambda match: match.file):
        matches = list(group)
        outer = _outermost(matches)
        left += len(matches) - len(outer)
        try:
            result = _rewrite_file(path, outer, context)
        except ToolError as error:
            failed.append({"path": clean(path), "error": str(error)})
        else:
            files.append({"path": result["path"], "replacements": len(outer), "diff": result["diff"]})
    result = {"files": files}
    if failed:
        result["failed"] = failed
    if left:
        result["note"] = f"{left} matches inside others were left: run the same rewrite again for them"
    return result


def _outermost(matches: Sequence[_Match]) -> list[_Match]:
    """Those that no earlier or greater one overlaps."""
    kept: list[_Match] = []
    for match in matches:
        if not kept or match.span.start >= kept[-1].span.end:
            kept.append(match)
    return kept


def _rewrite_file(path: str, matches: list[_Match], context: ToolContext) -> dict[str, Any]:
    def plan(text: str) -> list[Edit]:
        data = text.encode()
        if not all(_stands(match, data) for match in matches):
            raise ToolError(f"{path} changed while it was searched; try again")
        crlf = 0 < data.count(b"\n") == data.count(b"\r\n")
        edits: list[Edit] = []
        characters = counted = 0
        for match in matches:
            span = match.span
            characters += len(data[counted : span.start].decode())
            length = len(data[span.start : span.end].decode())
            new = match.replacement
            new = new.replace("\r\n", "\n").replace("\n", "\r\n") if crlf else new
            edits.append(Edit(characters, characters + length, new))
            characters += length
            counted = span.end
        return edits

    return change(path, context, plan)


AST_GREP = Tool(
    name="ast_grep",
    description=(
        "Search code by its structure, or rewrite all that matches: pattern is code in which $NAME stands for any one "
        "node and $$$NAME for any number, such as print($$$ARGS). Better than grep_search where layout, strings and "
        "comments must not matter, and than edit_file for the same change in many places. Search before you rewrite."
    ),
    arguments=AstGrep,
    run=ast_grep,
)
