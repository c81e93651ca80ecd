"""A git repository in a bench's workspace, for tests of the git tools."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from tests.tools.conftest import Bench, tree

IDENTITY = "[user]\n\tname = Ada Lovelace\n\temail = ada@example.org\n"


def git(folder: Path, *arguments: str | bytes) -> str:
    """The output of the machine's own git; the branch that `init` makes is main."""
    env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "GIT_TERMINAL_PROMPT": "0"}
    command = ["git", "-c", "init.defaultBranch=main", "-c", "core.quotePath=false", *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("utf-8", "surrogateescape")


class Repository:
    """Calls of tools, each of which must leave the settings and hooks of git as they are."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.root = bench.root
        self.git("init", "--quiet", "--template=")
        self.hooks = self.root / ".git" / "hooks"
        self.hooks.mkdir()

    def git(self, *arguments: str | bytes) -> str:
        return git(self.root, *arguments)

    def plant(self, **files: str) -> None:
        """`plant(a_txt="…")` writes a.txt."""
        for name, text in files.items():
            (self.root / name.replace("_", ".")).write_text(text)

    def commit(self, message: str, **files: str) -> None:
        self.plant(**files)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", f"--message={message}")

    def hook(self, name: str, script: str) -> None:
        path = self.hooks / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def ok(self, tool: str, **arguments: Any) -> dict[str, Any]:
        before = self._guarded()
        result = self.bench.ok(tool, **arguments)
        assert self._guarded() == before
        assert result["success"] is True
        return result

    def refused(self, tool: str, **arguments: Any) -> str:
        before = self._guarded()
        error = self.bench.refused(tool, **arguments)
        assert self._guarded() == before
        return error

    def _guarded(self) -> tuple[bytes, dict[str, bytes]]:
        return (self.root / ".git" / "config").read_bytes(), tree(self.hooks)

    def status(self) -> list[str]:
        return self.git("status", "--porcelain").splitlines()
