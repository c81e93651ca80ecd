"""`pawand completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from pawand.cli.common import say


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script with which SHELL completes commands, options, session ids and settings.

    \b
      bash: pawand completion bash > ~/.local/share/bash-completion/completions/pawand
      zsh:  pawand completion zsh > ~/.zfunc/_pawand   (with fpath+=~/.zfunc before compinit)
      fish: pawand completion fish > ~/.config/fish/completions/pawand.fish

    bash needs version 4.4. For one shell only: source <(pawand completion bash)
    """
    kind = get_completion_class(shell)
    assert kind is not None
    say(kind(context.find_root().command, {}, "pawand", "_PAWAND_COMPLETE").source(), nl=False)
