"""`glob_search` and `grep_search`, by ripgrep in the sandbox; by a slower walk of our own where it is missing."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Iterator
from typing import Annotated, Any

from msgspec import Meta, Struct
from pathspec import GitIgnoreSpec

from pawand.errors import ToolError
from pawand.tools.base import Emit, Tool, ToolContext
from pawand.tools.output import clean
from pawand.tools.workspace import MAX_FILE_BYTES

MAX_FILES = 200
MAX_LINES = 50
MAX_LINES_PER_FILE = 30
MAX_COLUMNS = 400
TIMEOUT_SECS = 30
SLOW_NOTE = "ripgrep is not installed, so this was a slower search: apt install ripgrep"


class GlobSearch(Struct):
    pattern: Annotated[str, Meta(min_length=1, description="Glob such as *.py or src/**/test_*.rs")]
    path: Annotated[str, Meta(description="Folder to search, relative to the workspace")] = "."


class GrepSearch(Struct):
    pattern: Annotated[str, Meta(min_length=1, description="Regular expression, one line at a time")]
    path: Annotated[str, Meta(description="File or folder to search, relative to the workspace")] = "."
    include: Annotated[str, Meta(description="Only files that match this glob, such as *.py")] | None = None


async def glob_search(args: GlobSearch, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{files, count}`, by name; `count` is of all that match."""
    if shutil.which("rg"):
        lines = await _ripgrep(["--files", "--glob", args.pattern, "--", args.path], context)
        files = sorted(line.removeprefix("./") for line in lines)
        return {"files": files[:MAX_FILES], "count": len(files)}
    files = await asyncio.to_thread(lambda: sorted(_walk(context, args.path, args.pattern)))
    return {"files": files[:MAX_FILES], "count": len(files), "note": SLOW_NOTE}


async def grep_search(args: GrepSearch, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{results, count}` with lines `path:number:text`; `count` is of those found before the caps."""
    if shutil.which("rg"):
        options = ["--line-number", "--no-heading", "--with-filename", "--sort=path"]
        options += [f"--max-count={MAX_LINES_PER_FILE}", f"--max-columns={MAX_COLUMNS}", "--max-columns-preview"]
        options += ["--glob", args.include] if args.include else []
        lines = await _ripgrep([*options, "--regexp", args.pattern, "--", args.path], context)
        results = [line.removeprefix("./") for line in lines]
        return {"results": results[:MAX_LINES], "count": len(results)}
    results = await asyncio.to_thread(_grep, args, context)
    return {"results": results[:MAX_LINES], "count": len(results), "note": SLOW_NOTE}


async def _ripgrep(arguments: list[str], context: ToolContext) -> list[str]:
    """The lines of ripgrep's output. Raises ToolError with ripgrep's own words for a bad pattern."""
    arguments[-1] = os.path.join(".", await asyncio.to_thread(context.workspace.resolve, arguments[-1]))
    command = ["rg", "--no-config", "--color=never", "--glob=!.git", *arguments]
    async with context.sandbox.start(command, session_id=context.session_id) as process:
        try:
            async with asyncio.timeout(TIMEOUT_SECS):
                stdout, stderr = await process.communicate()
        except TimeoutError as error:
            raise ToolError(f"the search took more than {TIMEOUT_SECS} s: search a smaller folder") from error
    if process.returncode not in (0, 1):
        raise ToolError(clean(stderr.decode("utf-8", "replace")).strip()[:1000] or "ripgrep failed")
    return clean(stdout.decode("utf-8", "replace")).splitlines()


def _walk(context: ToolContext, path: str, pattern: str | None) -> Iterator[str]:
    """Files below `path` that match, as ripgrep sees them: hidden and ignored ones left out."""
    wanted = GitIgnoreSpec.from_lines([pattern]) if pattern else None
    with context.workspace.open_folder(path) as top:
        base = context.workspace.resolve(path)
        rules: list[tuple[str, GitIgnoreSpec]] = []
        for folder, folders, files, descriptor in os.fwalk(".", dir_fd=top):
            here = os.path.normpath(os.path.join(base, folder))
            if ".gitignore" in files:
                rules.append((here, _ignore_rules(descriptor)))
            folders[:] = [f for f in folders if not f.startswith(".") and not _ignored(rules, f"{here}/{f}/")]
            for name in files:
                full = os.path.normpath(os.path.join(here, name))
                if (
                    not name.startswith(".")
                    and not _ignored(rules, full)
                    and (wanted is None or wanted.match_file(full))
                ):
                    yield full


def _ignore_rules(folder: int) -> GitIgnoreSpec:
    descriptor = os.open(".gitignore", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
        return GitIgnoreSpec.from_lines(file.read(MAX_FILE_BYTES).splitlines())


def _ignored(rules: list[tuple[str, GitIgnoreSpec]], path: str) -> bool:
    normal = os.path.normpath(path) + ("/" if path.endswith("/") else "")
    return any(
        spec.match_file(os.path.relpath(normal, base) + ("/" if path.endswith("/") else ""))
        for base, spec in rules
        if base == "." or normal.startswith(f"{base}/")
    )


def _grep(args: GrepSearch, context: ToolContext) -> list[str]:
    try:
        pattern = re.compile(args.pattern)
    except re.error as error:
        raise ToolError(f"bad regular expression: {error}") from error
    try:
        files = sorted(_walk(context, args.path, args.include))
    except ToolError:
        files = [context.workspace.resolve(args.path)]
    results: list[str] = []
    for file in files:
        try:
            data, _ = context.workspace.read(file)
        except ToolError:
            continue
        if b"\0" in data:
            continue
        lines = enumerate(data.decode("utf-8", "replace").splitlines(), 1)
        matches = [f"{file}:{number}:{line[:MAX_COLUMNS]}" for number, line in lines if pattern.search(line)]
        results += matches[:MAX_LINES_PER_FILE]
    return results


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
