"""``completion``: the lines that make a shell complete this command."""

from __future__ import annotations

import click

from .context import Settings, with_settings

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_TWINPORT_COMPLETE"
"""What click looks at to complete instead of running; it follows from the command's name."""


@click.command(short_help="Print what makes your shell complete twinport.")
@click.argument("shell", type=click.Choice(SHELLS))
@with_settings
def completion(settings: Settings, shell: str) -> None:
    """Print the lines that make your shell complete commands, options and local files.

    \b
    Examples:
      twinport completion bash >> ~/.bashrc
      twinport completion zsh >> ~/.zshrc
      twinport completion fish > ~/.config/fish/completions/twinport.fish
    """
    from click.shell_completion import get_completion_class

    from . import cli

    del settings
    maker = get_completion_class(shell)
    assert maker is not None, "click knows these shells"  # noqa: S101
    click.echo(maker(cli, {}, "twinport", VARIABLE).source())
