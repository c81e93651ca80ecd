"""`read_file`, `write_file` and `list_directory`."""

from __future__ import annotations

import asyncio
import os
import stat
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from pawand.errors import ToolError
from pawand.tools.base import Emit, Tool, ToolContext
from pawand.tools.output import clean, how_to_go_on, lines_of
from pawand.tools.workspace import Stamp

MAX_LINE_CHARS = 2000
MAX_ENTRIES = 1000
_NUMBER_CHARS = 10  # by which the offset to go on with may be longer than the one that was given

Path_ = Annotated[str, Meta(min_length=1, description="Path relative to the workspace")]


class ReadFile(Struct):
    path: Path_
    offset: Annotated[int, Meta(ge=0, description="First line to show, counted from 0")] = 0
    limit: Annotated[int, Meta(ge=1, description="How many lines at most")] = 2000


class WriteFile(Struct):
    path: Path_
    content: str


class ListDirectory(Struct):
    path: Annotated[str, Meta(description="Folder relative to the workspace")] = "."
    recursive: bool = False
    max_depth: Annotated[int, Meta(ge=1, le=20)] = 3


def read_text(path: str, context: ToolContext) -> tuple[str, Stamp]:
    """The text of a file exactly as it is, line endings included. Raises ToolError for what is no UTF-8 text."""
    data, stamp = context.workspace.read(path)
    if b"\0" in data:
        raise ToolError(f"{path} is a binary file")
    try:
        return data.decode("utf-8"), stamp
    except UnicodeDecodeError as error:
        raise ToolError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error


async def read_file(args: ReadFile, context: ToolContext, emit: Emit) -> dict[str, Any]:
    return await asyncio.to_thread(_read_file, args, context)


def _read_file(args: ReadFile, context: ToolContext) -> dict[str, Any]:
    text, stamp = read_text(args.path, context)
    context.seen[context.workspace.identity(args.path)] = stamp
    lines = lines_of(text)
    shown: list[str] = []
    result: dict[str, Any] = {
        "content": "",
        "path": args.path,
        "total_lines": len(lines),
        "lines_shown": len(lines),
        "offset": args.offset,
    }
    rest = result | how_to_go_on(args.offset, 0, len(lines))
    room = context.max_result_chars - len(msgspec.json.encode(rest)) - _NUMBER_CHARS
    for number, line in enumerate(lines[args.offset : args.offset + args.limit], args.offset + 1):
        numbered = f"{number:6d}\t{line[:MAX_LINE_CHARS]}{'…' if len(line) > MAX_LINE_CHARS else ''}"
        room -= len(msgspec.json.encode(numbered))
        if room < 0 and shown:
            break
        shown.append(numbered)
    result["content"] = clean("\n".join(shown))
    result["lines_shown"] = len(shown)
    return result | how_to_go_on(args.offset, len(shown), len(lines))


async def write_file(args: WriteFile, context: ToolContext, emit: Emit) -> dict[str, Any]:
    return await asyncio.to_thread(_write_file, args, context)


def _write_file(args: WriteFile, context: ToolContext) -> dict[str, Any]:
    seen = context.seen.get(context.workspace.identity(args.path))
    now = context.workspace.stamp(args.path)
    if seen is not None and now is not None and seen != now:
        raise ToolError(f"{args.path} changed on disk since it was read: read it again before you overwrite it")
    data = args.content.encode("utf-8", "replace")
    stamp = context.workspace.write(args.path, data)
    context.seen[context.workspace.identity(args.path)] = stamp
    return {
        "success": True,
        "path": args.path,
        "bytes_written": len(data),
        "lines": len(lines_of(args.content)),
        "created": now is None,
    }


async def list_directory(args: ListDirectory, context: ToolContext, emit: Emit) -> dict[str, Any]:
    return await asyncio.to_thread(_list_directory, args, context)


def _list_directory(args: ListDirectory, context: ToolContext) -> dict[str, Any]:
    base = context.workspace.relative(args.path)
    entries: list[dict[str, Any]] = []
    with context.workspace.open_folder(args.path) as folder:
        complete = _scan(folder, "" if base == "." else base, args.max_depth if args.recursive else 1, entries)
    result: dict[str, Any] = {"path": args.path, "entries": entries, "count": len(entries)}
    if not complete:
        result["warning"] = f"only the first {MAX_ENTRIES} entries are shown"
    return result


def _scan(folder: int, base: str, depth: int, entries: list[dict[str, Any]]) -> bool:
    """Add the entries below an open folder, folders first and by name; links are shown, not followed."""
    with os.scandir(folder) as found:
        rows = sorted(found, key=lambda entry: (not _is_folder(entry), entry.name))
    for row in rows:
        if len(entries) >= MAX_ENTRIES:
            return False
        path = os.path.join(base, row.name)
        entry: dict[str, Any] = {"name": clean(row.name), "path": clean(path), "is_dir": _is_folder(row)}
        try:
            status = row.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        except OSError:  # in a folder that we may read but not enter, names are all there is
            entries.append(entry)
            continue
        is_folder = entry["is_dir"] = stat.S_ISDIR(status.st_mode)
        entry["size"] = status.st_size
        if stat.S_ISLNK(status.st_mode):
            entry["link"] = True
        entries.append(entry)
        if is_folder and depth > 1 and row.name != ".git":
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                inner = os.open(row.name, flags, dir_fd=folder)
            except OSError:
                continue
            try:
                if not _scan(inner, path, depth - 1, entries):
                    return False
            finally:
                os.close(inner)
    return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """As far as the folder that holds it tells."""
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


READ_FILE = Tool(
    name="read_file",
    description="Read a text file of the workspace. Lines come numbered; long files in parts, by offset and limit.",
    arguments=ReadFile,
    run=read_file,
    read_only=True,
)
WRITE_FILE = Tool(
    name="write_file",
    description="Write a whole file, making it and its folders where they are missing. Prefer edit_file for changes.",
    arguments=WriteFile,
    run=write_file,
)
LIST_DIRECTORY = Tool(
    name="list_directory",
    description="List a folder of the workspace, with sizes; recursive down to max_depth.",
    arguments=ListDirectory,
    run=list_directory,
    read_only=True,
)
