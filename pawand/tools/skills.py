"""Skills: instructions for particular kinds of work, which the model is told of by name and reads when one fits.

A skill is a folder with a `SKILL.md` that begins with YAML front matter (facts 1.11). Those of the user's own folder
are read with `read_skill`, those of the workspace with `read_file`. What is damaged or leads elsewhere is passed over.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta, Struct

from pawand.errors import ConfigError, ToolError
from pawand.tools.base import Emit, Tool, ToolContext
from pawand.tools.files import read_text
from pawand.tools.output import clean, how_to_go_on, lines_of
from pawand.tools.workspace import Workspace

FILE = "SKILL.md"
WORKSPACE_FOLDER = ".pawan/skills"
MAX_SKILLS = 100
MAX_FOLDERS = 200
MAX_FILES = 100
MAX_DEPTH = 3
MAX_NAME_CHARS = 100
MAX_DESCRIPTION_CHARS = 500
MAX_FRONT_MATTER_BYTES = 8 * 1024
MAX_BRACKETS = 100  # PyYAML takes a second for thousands that are open at once
_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$\n?", re.DOTALL | re.MULTILINE)


class Skill(Struct, frozen=True, kw_only=True):
    """`dir` is relative to the folder of skills, or to the workspace."""

    name: str
    description: str
    dir: str


class ReadSkill(Struct):
    name: Annotated[str, Meta(min_length=1, description="Name of the skill")]
    file: Annotated[str, Meta(min_length=1, description="File of the skill's folder")] = FILE
    offset: Annotated[int, Meta(ge=0, description="First line to show, counted from 0")] = 0


Parse = Callable[[str], tuple[str, str] | None]
"""Front matter to name and description."""


class Skills:
    """Finds skills; a `folder` that is None or not there, now that this is made, holds none. Making it blocks."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder if folder is not None and folder.is_dir() else None
        # YAML is slow, and this is asked in every turn.
        self._parse: Parse = functools.lru_cache(2 * MAX_FOLDERS + 1)(_parse)

    @property
    def readable(self) -> bool:
        """Whether there is a folder. It stays so: a model that is told of its skills must have `read_skill`."""
        return self._folder is not None

    def listed(self) -> list[Skill]:
        """Those of the folder, ordered by name. Blocks."""
        if self._folder is None:
            return []
        try:
            with closing(Workspace(self._folder)) as place:
                return _unique(_scan(place, ".", self._parse))
        except ConfigError:
            return []

    def of_workspace(self, workspace: Workspace) -> list[Skill]:
        """Those that the repository brings: its own SKILL.md and the folders of `.pawan/skills`. Blocks."""
        own = _skill(workspace, ".", self._parse)
        return _unique([*([own] if own else []), *_scan(workspace, WORKSPACE_FOLDER, self._parse)])

    def read(self, args: ReadSkill, context: ToolContext) -> dict[str, Any]:
        """What `read_skill` answers. Blocks. Raises ToolError."""
        known = self.listed()
        skill = next((skill for skill in known if skill.name == args.name), None)
        if skill is None or self._folder is None:
            names = ", ".join(skill.name for skill in known)
            raise ToolError(f"there is no skill {args.name}; there are: {names}")
        with closing(Workspace(self._folder)) as place:
            path = os.path.join(skill.dir, args.file)
            if not place.resolve(path).startswith(f"{place.resolve(skill.dir)}/"):
                raise ToolError(f"{args.file} leads out of the folder of the skill {skill.name}")
            text, _ = read_text(path, msgspec.structs.replace(context, workspace=place))
            files = []
            if os.path.normpath(args.file) == FILE:
                text = text[_end_of_front_matter(text) :].lstrip("\r\n")
                files = _files(place, skill.dir)
        return _shown(args, text, files, context.max_result_chars)


def prompt_section(skills: Iterable[Skill], of_workspace: Iterable[Skill]) -> str:
    """What the model is told of the skills there are; empty when there are none."""
    lines = [f"- {skill.name}: {skill.description} (read_skill)" for skill in skills]
    for skill in of_workspace:
        path = os.path.normpath(os.path.join(skill.dir, FILE))
        lines.append(f"- {skill.name}: {skill.description} (read_file {path})")
    if not lines:
        return ""
    how = "Each tells how to do one kind of work. When one fits your task, read it first, as its line says."
    return "\n".join(["## Skills", "", how, *lines])


def tool(skills: Skills) -> Tool:
    """`read_skill`, to be offered where there is a skill to read."""

    async def read_skill(args: ReadSkill, context: ToolContext, emit: Emit) -> dict[str, Any]:
        try:
            return await asyncio.to_thread(skills.read, args, context)
        except ConfigError as error:  # the folder went away meanwhile
            raise ToolError(f"the skills cannot be read: {error}") from error

    return Tool(
        name="read_skill",
        description="Read a skill by its name. The other files of the skill are listed: read them with `file`.",
        arguments=ReadSkill,
        run=read_skill,
        read_only=True,
    )


# --- finding ------------------------------------------------------------------------------------------


def _scan(place: Workspace, folder: str, parse: Parse) -> list[Skill]:
    """The skills in the folders of `folder`, which may be missing."""
    try:
        with place.open_folder(folder) as descriptor:
            names = sorted(name for name in os.listdir(descriptor) if name.isprintable())[:MAX_FOLDERS]
    except (ToolError, OSError):
        return []
    found = (_skill(place, os.path.normpath(os.path.join(folder, name)), parse) for name in names)
    return [skill for skill in found if skill is not None]


def _skill(place: Workspace, folder: str, parse: Parse) -> Skill | None:
    try:
        with place.open_file(os.path.join(folder, FILE)) as descriptor:
            head = os.read(descriptor, MAX_FRONT_MATTER_BYTES)
    except (ToolError, OSError):
        return None
    matter = _FRONT_MATTER.match(head.decode("utf-8", "replace"))
    parsed = parse(matter[1]) if matter else None
    return Skill(name=parsed[0], description=parsed[1], dir=folder) if parsed else None


def _unique(skills: list[Skill]) -> list[Skill]:
    """Ordered by name; of those that are called the same, the first."""
    first = {skill.name: skill for skill in reversed(skills)}
    return sorted(first.values(), key=lambda skill: skill.name)[:MAX_SKILLS]


def _parse(matter: str) -> tuple[str, str] | None:
    if matter.count("[") + matter.count("{") > MAX_BRACKETS:
        return None
    try:
        # All scalars stay text: nothing is made of dates or numbers, and no `<<` multiplies what it names.
        values = yaml.load(matter, Loader=yaml.BaseLoader)  # noqa: S506 - it makes nothing but text, lists and dicts
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    name, description = _line(values.get("name")), _line(values.get("description"))
    if not name or len(name) > MAX_NAME_CHARS or not name.isprintable():
        return None
    return name, description[:MAX_DESCRIPTION_CHARS]


def _line(value: Any) -> str:
    return clean(" ".join(value.split())) if isinstance(value, str) else ""


def _end_of_front_matter(text: str) -> int:
    matter = _FRONT_MATTER.match(text)
    return matter.end() if matter else 0


# --- reading ------------------------------------------------------------------------------------------


def _files(place: Workspace, folder: str) -> list[str]:
    """The other files of a skill, relative to its folder; hidden ones and links are left out."""
    found: list[str] = []
    with place.open_folder(folder) as top:
        for below, folders, names, descriptor in os.fwalk(".", dir_fd=top):
            depth = 0 if below == "." else below.count("/")
            folders[:] = sorted(f for f in folders if not f.startswith(".")) if depth < MAX_DEPTH else []
            for name in sorted(names):
                path = os.path.normpath(os.path.join(below, name))
                if not name.startswith(".") and path != FILE and not _is_link(name, descriptor):
                    found.append(clean(path))
            if len(found) >= MAX_FILES:
                return [*found[:MAX_FILES], "…"]
    return found


def _is_link(name: str, folder: int) -> bool:
    try:
        os.readlink(name, dir_fd=folder)
    except OSError:
        return False
    return True


def _shown(args: ReadSkill, text: str, files: list[str], limit: int) -> dict[str, Any]:
    """As many lines as the result has room for, at least one."""
    lines = lines_of(clean(text))
    room = limit - 500 - len(msgspec.json.encode(files))  # the other fields of the result
    shown: list[str] = []
    for line in lines[args.offset :]:
        room -= len(msgspec.json.encode(line))
        if room < 0 and shown:
            break
        shown.append(line)
    result: dict[str, Any] = {"name": args.name, "file": args.file, "content": "\n".join(shown)}
    if files:
        result["files"] = files
    return result | how_to_go_on(args.offset, len(shown), len(lines))
