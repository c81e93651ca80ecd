"""The files below a folder as ripgrep sees them, found without it: no hidden ones, none that `.gitignore` names."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator

from pawand.errors import ToolError
from pawand.tools import ignore
from pawand.tools.output import lines_of
from pawand.tools.workspace import Workspace

MAX_RULE_BYTES = 512 * 1024  # of all `.gitignore` files of a walk, which keeps what it has read


class _Rules:
    """Those of the `.gitignore` files read so far, by the folder in which each stands."""

    def __init__(self, workspace: Workspace, deadline: float) -> None:
        self._workspace = workspace
        self._deadline = deadline
        self._read = 0
        self._by_folder: dict[str, list[ignore.Rule]] = {}

    def read(self, folder: str) -> None:
        try:
            data, _ = self._workspace.read(os.path.join(folder, ".gitignore"))
        except ToolError:
            return
        self._read += len(data)
        if self._read > MAX_RULE_BYTES:
            raise ToolError(f"the .gitignore files have more than {MAX_RULE_BYTES} bytes: search a smaller folder")
        lines = lines_of(data.decode("utf-8-sig", "surrogateescape"))
        self._by_folder[folder] = ignore.parse(_in_time(lines, self._deadline))

    def leave_out(self, path: str, *, is_folder: bool) -> bool:
        """The deepest `.gitignore` that names the path decides."""
        names = path.split("/")
        for depth in range(len(names) - 1, -1, -1):
            rules = self._by_folder.get("/".join(names[:depth]) or ".")
            if rules and (verdict := ignore.verdict(rules, names[depth:], is_folder=is_folder)) is not None:
                return verdict
        return False


def files(workspace: Workspace, folder: str, ignore_files: list[str], deadline: float) -> Iterator[str]:
    """Regular files below `folder`; `ignore_files` are the `.gitignore` files above it. Blocks.

    Raises TimeoutError after `deadline`, a time of time.monotonic.
    """
    rules = _Rules(workspace, deadline)
    for file in ignore_files:
        rules.read(os.path.dirname(file) or ".")
    with workspace.open_folder(folder) as top:
        for below, folders, names, descriptor in os.fwalk(".", dir_fd=top):
            here = os.path.normpath(os.path.join(folder, below))
            prefix = "" if here == "." else f"{here}/"
            if ".gitignore" in names:
                rules.read(here)
            folders[:] = _seen(rules, prefix, _in_time(folders, deadline), is_folder=True)
            for name in _seen(rules, prefix, _in_time(names, deadline), is_folder=False):
                if _is_regular(name, descriptor):
                    yield f"{prefix}{name}"


def _seen(rules: _Rules, prefix: str, names: Iterable[str], *, is_folder: bool) -> Iterator[str]:
    for name in names:
        if not name.startswith(".") and not rules.leave_out(f"{prefix}{name}", is_folder=is_folder):
            yield name


def _in_time(items: Iterable[str], deadline: float) -> Iterator[str]:
    for item in items:
        if time.monotonic() > deadline:
            raise TimeoutError
        yield item


def _is_regular(name: str, folder: int) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False
