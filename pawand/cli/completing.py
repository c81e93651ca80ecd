"""What the shell offers for words that are no commands or options: quickly, silently, without a daemon."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import click

from pawand import paths
from pawand.errors import PawandError

MAX_SESSIONS = 50


def session_ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The sessions that were used last, those first."""
    from pawand import config
    from pawand.sessions.model import is_id

    try:
        folder = config.sessions_folder(config.load(Path.cwd(), {}).config, paths.state_dir())
        with os.scandir(folder) as entries:
            named = [
                (e.stat(follow_symlinks=False).st_mtime, e.name.removesuffix(".json"))
                for e in entries
                if e.name.endswith(".json")
            ]
    except (PawandError, OSError):
        return []
    fitting = [id for _, id in sorted(named, reverse=True) if id.startswith(incomplete) and is_id(id)]
    return fitting[:MAX_SESSIONS]


def peers(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Those that the settings name."""
    from pawand import config

    try:
        named = config.load(Path.cwd(), {}).config.peers
    except PawandError:
        return []
    return sorted(name for name in named if name.startswith(incomplete))


def config_keys(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """All settings that have a fixed name, and those that are set."""
    from pawand import config

    known = {name for name in config.names() if "NAME" not in name.split(".")}
    with suppress(PawandError):  # what is wrong with the settings is for the command to say
        known |= set(config.load(Path.cwd(), {}).sources)
    return sorted(key for key in known if key.startswith(incomplete))
