"""`pawand serve`, and the options that `start` and `restart` share with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pawand import paths

if TYPE_CHECKING:
    from pawand.daemon import Plan

OPTIONS = [
    click.option(
        "--workspace", type=click.Path(path_type=Path), help="Folder the agent works in.  [default: this folder]"
    ),
    click.option("--config", metavar="FILE", help="Settings that count more than the other files."),
    click.option("--host", help="Address to listen on.  [default: 127.0.0.1 and ::1]"),
    click.option("--port", type=int, help="Port to listen on.  [default: 3300]"),
    click.option("--mdns", is_flag=True, help="Announce this agent on the network, and look for others."),
    click.option("--provider", help="nvidia, openai, ollama, mlx or local."),
    click.option("--model", help="Model to use where a request names none."),
    click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        envvar="PAWAND_LOG_LEVEL",
        default="info",
        show_default=True,
    ),
    click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True),
    click.option("--log-file", metavar="FILE", help="Log to this file, rotated, instead of standard error."),
]
FLAGS = {
    "config": "config",
    "host": "server.host",
    "port": "server.port",
    "mdns": "discovery.mdns",
    "provider": "provider",
    "model": "model",
}
"""Option → key of the settings."""
_PATHS = ("workspace", "config", "log_file")


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    """OPTIONS, as keyword arguments of `function`."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function


def given() -> dict[str, Any]:
    """What the command line itself gave of OPTIONS, as values of JSON that mean the same in any folder."""
    context = click.get_current_context()
    names = [param.name for param in command.params if param.name]
    found = {n: context.params[n] for n in names if context.get_parameter_source(n) is ParameterSource.COMMANDLINE}
    return {n: str(paths.expand(value).absolute()) if n in _PATHS else value for n, value in found.items()}


def plan(options: Mapping[str, Any]) -> Plan:
    """What a daemon with `options` would go by. Raises ConfigError."""
    from pawand import daemon

    return daemon.plan(flags(options), Path(options.get("workspace") or Path.cwd()), options=options)


def rehearse(options: Mapping[str, Any], own_port: int | None) -> None:
    """Raises what keeps a daemon with `options` from starting in place of the one on `own_port`."""
    from pawand.daemon import rehearsal

    rehearsal.check(plan(options), own_port)


def flags(options: Mapping[str, Any]) -> dict[str, Any]:
    """As `config.load` takes them."""
    return {key: options.get(name) for name, key in FLAGS.items()}


def arguments(options: Mapping[str, Any]) -> list[str]:
    """The command line that gives `options`; what this version does not know is left out."""
    found = []
    for param in command.params:
        value = options.get(param.name or "")
        if isinstance(param, click.Option) and value is not None:
            if param.is_flag:
                found += param.opts[:1] if value else param.secondary_opts[:1]
            else:
                found.append(f"{param.opts[0]}={value}")
    return found


@click.command("serve")
@options
def command(log_level: str, log_format: str, log_file: str | None, **_: Any) -> None:
    """Run the daemon in the foreground until Ctrl-C or SIGTERM.

    Settings come from /etc/pawan/pawan.toml, ~/.config/pawan/pawan.toml, the workspace's pawan.toml, --config,
    PAWAN_* environment variables and these options; later ones win.
    """
    from pawand import daemon, logs

    logs.set_up(log_level, log_format, paths.expand(log_file).absolute() if log_file else None)
    daemon.serve(plan(given()))
