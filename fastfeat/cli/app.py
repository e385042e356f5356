"""The program: its commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

import typer

import fastfeat
from fastfeat.errors import FastFeatError

from . import bench, demo, inspection, load, read, serve, storage, train

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130

# A usage error's class is click's in older versions of typer and typer's own in newer ones; this name holds in both.
UsageError: type[Exception] = typer.BadParameter.mro()[1]

app = typer.Typer(
    name="fastfeat",
    help="A feature server for machine learning: declare features in Python, load Arrow, read them as they are now or"
    " as they stood at any past moment.",
    epilog="Start with `fastfeat demo`. Every command answers --help with an example."
    " Exit codes: 0 done, 1 failed, 2 used wrongly.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(serve.serve)
app.command(hidden=True)(serve.serve_writer)
app.command()(load.load)
app.command()(read.get)
app.command()(read.replay)
app.command()(read.info)
app.command()(train.train)
app.command()(storage.snapshot)
app.command()(storage.compact)
app.command()(inspection.check)
app.command()(inspection.backup)
app.command()(inspection.restore)
app.command()(bench.bench)


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"fastfeat {fastfeat.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error; may stand anywhere."),
) -> None:
    """Options of the program itself. `run` reads --debug, so that it may follow the command too."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; every error is one line on stderr."""
    debug = "--debug" in arguments
    words = [word for word in arguments if word != "--debug"]
    try:
        code = app(args=words or ["--help"], prog_name="fastfeat", standalone_mode=False)
        return code if isinstance(code, int) else DONE
    except UsageError as error:
        return fail(error, MISUSED, debug, usage_message(error))
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (FastFeatError, OSError, ImportError) as error:
        return fail(error, FAILED, debug, f"{type(error).__name__}: {error}")
    except Exception as error:
        return fail(error, FAILED, debug, f"{type(error).__name__}: {error} (not expected: --debug shows where)")


def usage_message(error: Exception) -> str:
    """What was wrong with the words of the command line, and where help is."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "fastfeat"
    return f"{error.format_message()} (see `{command} --help`)"  # type: ignore[attr-defined]


def fail(error: BaseException, code: int, debug: bool, message: str) -> int:
    if debug:
        traceback.print_exception(error)
    print("fastfeat:", " ".join(message.split()), file=sys.stderr)
    return code
