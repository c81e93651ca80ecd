"""The globs that the search tools take, matched the same way with ripgrep and without it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

from pawand.errors import ToolError

MAX_ALTERNATIVES = 100

Matcher = Callable[[str], bool]
"""Whether a glob matches a path, which is relative to the workspace."""


def matcher(glob: str, place: str) -> Matcher:
    """`*.py` matches by name at any depth; with a slash, below the searched folder or from the workspace's root.

    `*`, `?`, `[…]`, `{a,b}` and `**` for any number of folders; a leading `!` turns it round.
    """
    turned = glob.startswith("!")
    patterns = [_parts(alternative) for alternative in _alternatives(glob.removeprefix("!"))]
    above = "" if place == "." else f"{place}/"

    def matches(path: str) -> bool:
        ways = {path, path.removeprefix(above)}
        return turned != any(_match(parts, way.split("/")) for way in ways for parts in patterns)

    return matches


def _alternatives(glob: str) -> list[str]:
    """`a.{b,c}` as `a.b` and `a.c`."""
    done: list[str] = []
    waiting = [glob]
    while waiting:
        glob = waiting.pop()
        braces = re.search(r"\{([^{}]*,[^{}]*)\}", glob)
        if braces is None:
            done.append(glob)
        else:
            waiting += [glob[: braces.start()] + word + glob[braces.end() :] for word in braces[1].split(",")]
        if len(waiting) + len(done) > MAX_ALTERNATIVES:
            raise ToolError("the glob has too many alternatives")
    return done


def _parts(glob: str) -> list[str]:
    parts = [part.replace("[^", "[!") for part in glob.split("/") if part not in ("", ".")]
    if glob.endswith("/"):
        parts.append("**")
    return parts if "/" in glob else ["**", *parts]


def _match(parts: list[str], names: list[str]) -> bool:
    reached = {0}  # how many of the names may be used up so far
    for part in parts:
        if part == "**":
            reached = set(range(min(reached, default=len(names) + 1), len(names) + 1))
        else:
            reached = {at + 1 for at in reached if at < len(names) and fnmatch.fnmatchcase(names[at], part)}
    return len(names) in reached
