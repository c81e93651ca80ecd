"""The places that settings name, or else their defaults."""

from __future__ import annotations

from pathlib import Path

from pawand import paths
from pawand.config.schema import Config


def token_file(config: Config, state: Path) -> Path:
    return paths.expand(config.server.token_file) if config.server.token_file else state / "token"


def aegis_files(config: Config) -> list[Path]:
    """The first of them that exists counts."""
    configured = config.discovery.aegis_file
    return [*([paths.expand(configured)] if configured else []), paths.aegis_file()]


def sessions_folder(config: Config, state: Path) -> Path:
    return paths.expand(config.sessions.dir) if config.sessions.dir else state / "sessions"
