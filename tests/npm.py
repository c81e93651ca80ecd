"""MCP servers that others publish, installed with npm as users do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tools.conftest import running

PACKAGES = [
    "@modelcontextprotocol/server-filesystem@2026.8.31",
    "@modelcontextprotocol/server-everything@2026.8.31",
]

needs_npm = pytest.mark.skipif(
    not (shutil.which("npm") and shutil.which("node")), reason="npm or node is not installed"
)


def install(folder: Path) -> Path:
    """The folder of the servers' commands."""
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *PACKAGES]
    env = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=env, check=False)
    if done.returncode and "CI" not in os.environ:
        pytest.skip(f"npm cannot install: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr
    return folder / "node_modules" / ".bin"


def node_processes(marker: str) -> list[int]:
    """The node processes themselves that carry `marker` in their command line, not what starts them."""
    return [pid for pid in running(marker) if Path(f"/proc/{pid}/exe").resolve().name == "node"]
