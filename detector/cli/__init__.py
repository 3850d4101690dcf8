"""Run `sppnet`: its subcommands are imported when they are called, so that `sppnet --help` answers at once."""

from __future__ import annotations

import importlib
import logging
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

# name -> (module, attribute, what `sppnet --help` says of it)
_COMMANDS = {
    "detect": ("detector.cli.detect", "detect", "Find objects in photos and draw them."),
    "classify": ("detector.cli.classify", "classify", "Say what photos of any size show."),
    "train": ("detector.cli.train", "train", "Train a detector, or a classifier, on annotated photos."),
    "refit": ("detector.cli.refit", "refit", "Refit one class of a detector with new photos, in seconds."),
    "propose": ("detector.cli.propose", "propose", "Propose regions of photos and keep them."),
    "recall": ("detector.cli.recall", "recall", "Measure how many objects proposals cover, side by side."),
    "benchmark": ("detector.cli.benchmark", "benchmark", "Race SPP-net against R-CNN, stage by stage."),
    "check": ("detector.cli.check", "check", "Check annotated photos, and say what is wrong with them."),
    "evaluate": ("detector.cli.evaluate", "evaluate", "Measure average precision on annotated photos."),
}


class LazyGroup(click.Group):
    """Import subcommands on demand, and tell mistakes in one line: exit code 2 for usage, 1 otherwise, 130 for Ctrl-C.

    With --verbose, errors keep their traceback.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the subcommands."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a subcommand; None if there is none of this name."""
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands in the help without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; turn errors that a user's input causes into one sentence."""
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            if ctx.params.get("verbose") or isinstance(error, BrokenPipeError):
                raise
            raise click.ClickException(_sentence(error)) from error

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        """Parse the command line, run it and, if `standalone_mode`, exit with its code."""
        run: Any = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **kwargs)
        try:
            result = run(*args, standalone_mode=False, **kwargs)
        except click.Abort:
            click.echo("interrupted", err=True)
            sys.exit(130)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            hint = f" (see {context.command_path} --help)" if context is not None and error.exit_code == 2 else ""
            click.echo(f"sppnet: error: {' '.join(error.format_message().split()).rstrip('.')}{hint}", err=True)
            sys.exit(error.exit_code)
        sys.exit(result if isinstance(result, int) else 0)


def _sentence(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    try:
        number = version("sppnet")
    except PackageNotFoundError:
        number = "of a source tree that is not installed"
    click.echo(f"sppnet {number}")
    ctx.exit()


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "--verbose", is_flag=True, help="Log what happens; show the traceback of an error.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
@click.pass_context
def main(ctx: click.Context, verbose: bool) -> None:
    """Find objects in photos with a spatial pyramid pooling network (SPP-net).

    The convolutional layers see each photo once; every proposed region is then cut from their map, pooled by a
    spatial pyramid, named and given a better box.

    \b
    Examples:
      sppnet detect cat.jpg --out found         see found/cat.jpg, found/detections.json
      sppnet detect photos/ --out found --score 0.3      less certain objects too
      sppnet detect cat.jpg --out found --boxes my.json  name boxes you already have
      sppnet classify photos/                   what each photo shows, whatever its size
      sppnet train voc:VOC2007:trainval --out run        a model of your own
      sppnet refit run/model.safetensors --class cat --background photos/ --out run/new.safetensors
      sppnet propose photos/ --out boxes        regions that may hold an object
      sppnet recall --data voc:VOC2007:test --proposals fast,quality --out recall
      sppnet benchmark                          how many times R-CNN's time it saves here
      sppnet evaluate --model run/model.safetensors --data voc:VOC2007:test

    `sppnet COMMAND --help` tells all options of a command.
    """
    if verbose:
        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True)
        for name in ("detector", "proposals"):
            logging.getLogger(name).setLevel(logging.DEBUG)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
