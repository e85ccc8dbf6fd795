"""The `layerlens` command: its verbs, and how it ends."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import typer

from layerlens.cli import analyze, bench, check, compare, contribution, demo, eval, fit_lens, merge, plot, report, select, train, watch
from layerlens.cli.options import in_bounds
from layerlens.errors import LayerLensError, one_line

INTERRUPTED = 130
MENDABLE = 2

app = typer.Typer(
    name="layerlens",
    help="See how a language model's policy forms layer by layer: measure it, draw it, compare models, choose a layer and train it.\n\n"
    "Begin with `layerlens demo`. On a model of yours: analyze, then report, plot, compare or select what it has measured, "
    "then train and eval.",
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _command(name: str, verb: Callable[..., None], **options: Any) -> None:
    app.command(name, **options)(in_bounds(verb))


_command("demo", demo.demo)
_command("analyze", analyze.analyze_command)
_command("plot", plot.plot)
_command("report", report.report)
_command("watch", watch.watch)
_command("compare", compare.compare_command)
_command("select", select.select)
_command("merge", merge.merge_command)
_command("train", train.train, cls=train.TrainCommand, context_settings={"ignore_unknown_options": True})
_command("eval", eval.eval_command)
_command("contribution", contribution.contribution)
_command("bench", bench.bench_command)
_command("fit-lens", fit_lens.fit_lens)
_command("check", check.check)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Show the version and exit.", is_eager=True)) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"layerlens {installed('layerlens-policy')}")
        raise typer.Exit


def main() -> None:
    """Runs the command line. Exits with 2 and one line for what the user can mend, 130 on Ctrl-C."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # other libraries' progress bars would fill a log
    warnings.formatwarning = _warning_text
    try:
        # not standalone: typer would tell of wrong usage in a box of several lines
        code = app(sys.argv[1:] or ["--help"], prog_name="layerlens", standalone_mode=False)
    except typer.TyperException as error:
        _leave(_usage(error.format_message()))
    except LayerLensError as error:
        _leave(str(error))
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        _leave(f"not enough memory ({one_line(error)}): ask for less at once, or take a smaller dtype")
    except OSError as error:
        _leave(f"{error.filename or 'file'}: {error.strerror or error}")
    if code == INTERRUPTED:
        print("layerlens: interrupted; what is done is kept, and the same command continues from there", file=sys.stderr)
    sys.exit(code)


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, in Python, numpy or torch, which says so on a CPU by its text alone."""
    said = ("allocate memory", "out of memory", "not enough memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or any(text in str(error) for text in said)


def _usage(message: str) -> str:
    """What is wrong with the command as it was typed, and which help says how it should be."""
    verbs = [command.name for command in app.registered_commands]
    verb = next((f" {word}" for word in sys.argv[1:2] if word in verbs), "")
    message = message.replace("Value error, ", "")  # pydantic's, in front of typer's own words
    return f"{message[:1].lower()}{message[1:].rstrip('.')}; see layerlens{verb} --help"


_python_text = warnings.formatwarning


def _warning_text(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning of ours as one line; one of another library as Python writes it."""
    if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parents[1]):
        return f"layerlens: warning: {message}\n"
    return _python_text(message, category, filename, lineno, line)


def _leave(message: str) -> NoReturn:
    print(f"layerlens: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(MENDABLE)
