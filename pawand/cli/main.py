"""The `pawand` command. Subcommands are imported when they are called; errors become one line and an exit code."""

from __future__ import annotations

import importlib
import io
import os
import sys

import click

from pawand import __version__
from pawand.cli.common import Context, say
from pawand.errors import PawandError

COMMANDS = {
    "serve": "serve",
    "start": "start",
    "stop": "stop",
    "restart": "restart",
    "logs": "logs",
    "status": "status",
    "doctor": "doctor",
    "chat": "chat",
    "cancel": "cancel",
    "sessions": "sessions",
    "config": "config",
    "models": "models",
    "agents": "agents",
    "token": "token",
    "completion": "completion",
    "install-service": "install_service",
    "version": "version",
}
"""Command → module of `pawand.cli`, in the order of `--help`."""
EXIT_CODES = {"config": 2, "not_running": 3}
"""Error code → exit code; every other error is 1 (docs/operations.md)."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"pawand.cli.{COMMANDS[name]}").command
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong use or configuration, 3 not running, 130 interrupted.",
)
@click.option("--url", metavar="URL", help="Daemon to talk to; found by itself when it runs on this machine.")
@click.version_option(__version__, prog_name="pawand")
@click.pass_context
def pawand(ctx: click.Context, url: str | None) -> None:
    """The Pawan coding agent on HTTP.

    Start it in a project with `pawand start`, then talk to it:

    \b
      pawand chat "What does this project do?"
      curl localhost:3300/health
    """
    ctx.obj = Context(url)


def main() -> None:
    if sys.stdout is None:  # closed by the shell: >&-
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character is no error
    try:
        code = pawand.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        say(shown.getvalue(), nl=False, err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads: nothing is left to flush
        sys.exit(1)
    except OSError as error:
        say(f"pawand: {_told(error)}", err=True)
        sys.exit(1)
    except PawandError as error:
        say(f"pawand: {error.message}", err=True)
        sys.exit(EXIT_CODES.get(error.code, 1))
    sys.exit(code if isinstance(code, int) else 0)


def _told(error: OSError) -> str:
    try:
        os.getcwd()
    except OSError:
        return "the folder that this shell is in is gone: cd into another one"
    what = error.strerror or str(error)
    return what if error.filename is None else f"{os.fsdecode(error.filename)}: {what}"


if __name__ == "__main__":  # `pawand start` runs it so: `python -P -m` takes no module from the folder it is in
    main()
