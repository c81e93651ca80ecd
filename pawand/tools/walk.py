"""The files below a folder as ripgrep sees them, found without it: no hidden ones, none that `.gitignore` names."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator

from msgspec import Struct
from pathspec import GitIgnoreSpec

from pawand.errors import ToolError
from pawand.tools.output import lines_of
from pawand.tools.workspace import Workspace


class _Rules(Struct, frozen=True):
    """A `.gitignore` and the folder it stands in."""

    folder: str
    spec: GitIgnoreSpec

    def verdict(self, path: str) -> bool | None:
        """Whether the path, with a slash at the end for a folder, is left out; None where it is not named."""
        inside = path if self.folder == "." else path.removeprefix(f"{self.folder}/")
        return self.spec.check_file(inside).include if inside != path or self.folder == "." else None


def files(workspace: Workspace, folder: str, ignore_files: list[str]) -> Iterator[str]:
    """Regular files below `folder`; `ignore_files` are the `.gitignore` files above it, from the root down. Blocks."""
    with workspace.open_folder(folder) as top:
        rules = {os.path.dirname(folder) or ".": _rules_above(workspace, folder, ignore_files)}
        for below, folders, names, descriptor in os.fwalk(".", dir_fd=top):
            here = os.path.normpath(os.path.join(folder, below))
            rules[here] = list(rules[os.path.dirname(here) or "."])
            if ".gitignore" in names:
                rules[here].append(_Rules(here, _ignore_spec(workspace, os.path.join(here, ".gitignore"))))
            prefix = "" if here == "." else f"{here}/"
            folders[:] = [f for f in folders if not f.startswith(".") and not _ignored(rules[here], f"{prefix}{f}/")]
            for name in names:
                path = f"{prefix}{name}"
                if not name.startswith(".") and not _ignored(rules[here], path) and _is_regular(name, descriptor):
                    yield path


def _rules_above(workspace: Workspace, folder: str, ignore_files: list[str]) -> list[_Rules]:
    """Without what would leave out the folder itself: it was asked for by name."""
    rules: list[_Rules] = []
    for file in ignore_files:
        above = os.path.dirname(file) or "."
        below = f"{os.path.relpath(folder, above)}/"
        kept = [pattern for pattern in _ignore_spec(workspace, file).patterns if pattern.match_file(below) is None]
        rules.append(_Rules(above, GitIgnoreSpec(kept)))
    return rules


def _ignore_spec(workspace: Workspace, path: str) -> GitIgnoreSpec:
    """The rules of a `.gitignore`; what git would not understand is passed over, a line or the whole file."""
    try:
        lines = lines_of(workspace.read(path)[0].decode("utf-8", "replace"))
    except ToolError:
        lines = []
    specs = []
    for line in lines:
        try:
            specs.append(GitIgnoreSpec.from_lines([line]))
        except (ValueError, re.error):
            continue
    return GitIgnoreSpec([pattern for spec in specs for pattern in spec.patterns])


def _ignored(rules: list[_Rules], path: str) -> bool:
    """The deepest `.gitignore` that names the path decides."""
    return next((verdict for rule in reversed(rules) if (verdict := rule.verdict(path)) is not None), False)


def _is_regular(name: str, folder: int) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False
