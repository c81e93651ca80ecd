"""`pawand config`: what the settings are and where they come from; `config_set` changes them."""

from __future__ import annotations

import difflib
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pawand import paths
from pawand.cli.common import as_json, note, one_line, print_json, printable, say
from pawand.cli.completing import config_keys

if TYPE_CHECKING:
    from pawand.config import Settings

_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_KEY = re.compile(rf"{_PART}(?:\.{_PART})*")
NOT_SET = 1
MASK = "***"

_workspace = click.option(
    "--workspace", type=click.Path(path_type=Path), help="Folder whose pawan.toml counts.  [default: this folder]"
)
_config = click.option("--config", metavar="FILE", help="Settings that count more than the other files.")


@click.group("config")
def command() -> None:
    """Show settings, and change them in a file."""


@command.command()
@_workspace
@_config
@as_json
def path(workspace: Path | None, config: str | None, as_json: bool) -> None:
    """List the files of settings in the order in which they are read; later ones count more."""
    rows = [
        {"path": str(file), "role": role, "exists": file.exists(), "written": role == "user"}
        for role, file in files(workspace, config).items()
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        state = "read" if row["exists"] else "not there"
        mark = "; `pawand config set` writes it" if row["written"] else ""
        say(f"{one_line(row['path'])}  ({row['role']}: {state}{mark})")


@command.command()
@_workspace
@_config
@as_json
def show(workspace: Path | None, config: str | None, as_json: bool) -> None:
    """Show every setting with its value and where that comes from. Secrets are masked."""
    from pawand.cli.toml_edit import dotted, inline

    settings = _load(workspace, config)
    for warning in settings.warnings:
        note(warning)
    rows = [(dotted(parts), *found) for parts, found in _all(settings).items()]
    masked = [(key, _masked(key, value), source) for key, value, source in rows]
    if as_json:
        print_json([{"key": key, "value": value, "source": source} for key, value, source in masked])
        return
    for key, value, source in masked:
        line = f"# {key} is not set" if value is None else f"{key} = {inline(value)}"
        say(line if source == "default" else f"{line}  # {one_line(source)}")


@command.command()
@click.argument("key", shell_complete=config_keys)
@_workspace
@_config
@as_json
def get(key: str, workspace: Path | None, config: str | None, as_json: bool) -> None:
    """Print the value of setting KEY, such as server.port, or of a table of them. Secrets are printed too.

    Exits 1 where it has none.
    """
    from pawand.cli.toml_edit import dotted, inline

    wanted = tuple(_known(key))
    found = {path: row for path, row in _all(_load(workspace, config)).items() if path[: len(wanted)] == wanted}
    value = _nested({path[len(wanted) :]: value for path, (value, _) in found.items()})
    source = ", ".join(dict.fromkeys(source for value, source in found.values() if value is not None)) or "default"
    if as_json:
        print_json({"key": dotted(wanted), "value": value, "source": source})
    elif value is not None:
        say(value if isinstance(value, str) else inline(value))
    else:
        say(f"{dotted(wanted)} is not set", err=True)
    if value is None:
        sys.exit(NOT_SET)


@command.command("set")
@click.argument("key", shell_complete=config_keys)
@click.argument("value")
@click.option("--file", type=click.Path(path_type=Path), help="The file to write.  [default: your own pawan.toml]")
def set_(key: str, value: str, file: Path | None) -> None:
    """Set KEY, such as server.port or mcp.NAME.command, to VALUE in a file of settings.

    VALUE is TOML where it can be read so, else text; - reads it from standard input, which keeps a token out of the
    shell's history. The file keeps its comments and its order, and is only written if pawand would accept it.
    """
    from pawand import config
    from pawand.cli import config_set, toml_edit

    parts = _known(key, to_set=True)
    toml = toml_edit.as_toml(_read_value(value), config.kind_of(parts))
    place, notes = config_set.put(parts, toml, file, list(files(None, None).values()))
    key = toml_edit.dotted(parts)
    shown = MASK if config.is_secret(key) else "{ … }" if toml.startswith("{") else toml
    say(f"{key} = {shown}  # {one_line(place)}")
    for text in notes:
        note(text)


def files(workspace: Path | None, explicit: str | None) -> dict[str, Path]:
    """Role → file, in the order in which they are read."""
    found = {
        "system": paths.SYSTEM_CONFIG,
        "user": paths.user_config_dir() / paths.CONFIG_NAME,
        "workspace": paths.expand(workspace or Path.cwd()).absolute() / paths.CONFIG_NAME,
    }
    explicit = explicit or os.environ.get("PAWAND_CONFIG")
    return found | ({"--config": paths.expand(explicit)} if explicit else {})


def _load(workspace: Path | None, explicit: str | None) -> Settings:
    from pawand import config

    return config.load(paths.expand(workspace or Path.cwd()).absolute(), {"config": explicit})


def _all(settings: Settings) -> dict[tuple[str, ...], tuple[Any, str]]:
    """(value, source) of each setting; the rules of the workspace where they are the stricter ones."""
    from pawand import config
    from pawand.agent.permissions import Permissions

    sources = settings.sources
    found = {
        path: (value, sources.get(".".join(path), "default")) for path, value in config.leaves(settings.config).items()
    }
    trusted, workspace = settings.config.permissions, settings.workspace_permissions
    for tool, decision in workspace.items():
        if Permissions(trusted, workspace).of(tool) != Permissions(trusted, {}).of(tool):
            found["permissions", tool] = decision, str(settings.stranger)
    return found


def _nested(values: dict[tuple[str, ...], Any]) -> Any:
    """A setting's own value, or the table of those below it that are set; None for nothing."""
    if () in values:
        return values[()]
    made: dict[str, Any] = {}
    for path, value in values.items():
        table = made
        for name in path[:-1]:
            table = table.setdefault(name, {})
        if value is not None:
            table[path[-1]] = value
    return made or None


def _masked(key: str, value: Any) -> Any:
    from pawand import config

    if value is not None and config.is_secret(key):
        return MASK
    if key.endswith("url") and "?" in str(value):
        return f"{str(value).partition('?')[0]}?{MASK}"
    return value


def _known(key: str, *, to_set: bool = False) -> list[str]:
    """The names that KEY is made of. Raises UsageError where there is no such setting."""
    from pawand import config

    parts = _split(key)
    if config.kind_of(parts) is not None or (to_set and parts[0] in config.RUST_ONLY_KEYS):
        return parts
    own = parts[1] if len(parts) > 1 else "NAME"
    near = difflib.get_close_matches(".".join(parts), [n.replace("NAME", own, 1) for n in config.names()], 3)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; `pawand config show` lists all"
    raise click.UsageError(printable(f"there is no setting {key}{hint}"))


def _split(key: str) -> list[str]:
    try:
        key.encode()
        found: Any = tomllib.loads(f"{key} = 0") if _KEY.fullmatch(key) and "\n" not in key else None
    except ValueError:
        found = None
    if found is None:
        raise click.UsageError(f"{key!r} is no key: write it like server.port")
    parts = []
    while isinstance(found, dict):
        [(name, found)] = found.items()
        parts.append(name)
    return parts


def _read_value(value: str) -> str:
    if value == "-":
        if sys.stdin is None:  # closed by the shell: <&-
            raise click.UsageError("there is no standard input to read VALUE from")
        typed = click.prompt("value", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read()
        value = str(typed).removesuffix("\n").removesuffix("\r")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise click.UsageError("VALUE is no UTF-8 text") from error
    return value
