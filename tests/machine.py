"""The files of a machine that settings are read from, and what root is not stopped by."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pawand import config, paths
from pawand.config import Settings
from pawand.errors import ConfigError


class Machine:
    """A machine's files: `system`, `user` and `workspace` are the three that are always looked for."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.system = root / "etc" / "pawan.toml"
        self.user = root / "xdg" / "pawan" / "pawan.toml"
        self.workspace = root / "work" / "pawan.toml"
        self.extra = root / "extra.toml"
        for file in (self.system, self.user, self.workspace):
            file.parent.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(paths, "SYSTEM_CONFIG", self.system)

    def load(self, env: Mapping[str, str] | None = None, **flags: Any) -> Settings:
        """`flags` are dotted keys with `__` for the dot."""
        dotted = {name.replace("__", "."): value for name, value in flags.items()}
        return config.load(self.workspace.parent, dotted, {"XDG_CONFIG_HOME": str(self.root / "xdg"), **(env or {})})

    def error(self, env: Mapping[str, str] | None = None, **flags: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            self.load(env, **flags)
        return caught.value.message


@contextmanager
def as_nobody(file: Path) -> Iterator[None]:
    """Without root's right to read everything."""
    file.chmod(0)
    if os.geteuid() != 0:
        yield
        return
    for folder in file.parents:
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
