"""`pawand serve`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("serve")
@click.option("--workspace", type=click.Path(path_type=Path), help="Folder the agent works in.  [default: this folder]")
@click.option("--config", metavar="FILE", help="Settings that count more than the other files.")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1 and ::1]")
@click.option("--port", type=int, help="Port to listen on.  [default: 3300]")
@click.option("--provider", help="nvidia, openai, ollama, mlx or local.")
@click.option("--model", help="Model to use where a request names none.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    envvar="PAWAND_LOG_LEVEL",
    default="info",
    show_default=True,
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(
    workspace: Path | None,
    config: str | None,
    host: str | None,
    port: int | None,
    provider: str | None,
    model: str | None,
    log_level: str,
    log_format: str,
) -> None:
    """Run the daemon in the foreground until Ctrl-C or SIGTERM.

    Settings come from /etc/pawan/pawan.toml, ~/.config/pawan/pawan.toml, the workspace's pawan.toml, --config,
    PAWAN_* environment variables and these options; later ones win.
    """
    from pawand import daemon, logs

    logs.set_up(log_level, log_format)
    flags = {
        "config": config,
        "server.host": host,
        "server.port": port,
        "provider": provider,
        "model": model,
    }
    daemon.serve(daemon.plan(flags, workspace or Path.cwd()))
