"""The program: its errors and warnings as lines, and what every command is guarded by."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import ipfast

from ..checks import check_no_overwriting


class _Group(TyperGroup):
    """Turns the errors of ipfast into one message and exit code 2; anything else is a defect and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except ipfast.IpfastError as error:
            typer.secho(f"ipfast: {error}", fg="red", err=True)
            raise typer.Exit(2) from None


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.secho(f"ipfast: warning: {message}", fg="yellow", err=True)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    help="Which training samples help your model and which hurt it. Positive scores help, negative scores hurt.",
    pretty_exceptions_enable=False,
)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make it a command, which refuses, before any work, to write over what it reads."""

    @functools.wraps(function)
    def guarded(**given: Any) -> None:
        outputs = {f"--{name}": given.get(name) for name in ("out", "report")}
        paths = {name: value for name, value in given.items() if isinstance(value, (Path, list)) and f"--{name}" not in outputs}
        inputs = {
            name if name == "scores" else f"--{name.replace('_', '-')}": value
            for name, value in paths.items()
            if isinstance(value, Path) or all(isinstance(part, Path) for part in value)
        }
        check_no_overwriting(function.__name__, outputs, inputs)
        function(**given)

    app.command()(guarded)
    return guarded


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(ipfast.__version__)
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass
