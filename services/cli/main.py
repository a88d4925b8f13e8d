"""The `imprimatur` command as a whole: its sub-modules put together, and the one place where an error becomes a
line on standard error and an exit code. No command lives here.

Exit codes: 0 done, 1 an error, 2 used wrongly, 130 interrupted.
"""

import importlib.metadata
import os
import sys
from typing import Annotated

import typer

from cli import (
    administration,
    assets,
    desk,
    evaluation,
    evidence,
    jobs,
    limits,
    policies,
    review_record,
    reviews,
    servers,
    submit,
    system,
    watch,
    webhooks,
)
from cli.output import complain, one_line
from imprimatur.errors import ImprimaturError

DEBUG_VARIABLE = "IMPRIMATUR_DEBUG"
INTERRUPTED = 130

app = typer.Typer(name="imprimatur", pretty_exceptions_enable=False)
app.add_typer(submit.app)
app.add_typer(watch.app)
app.add_typer(jobs.app)
app.add_typer(system.app)
app.add_typer(limits.app)
app.add_typer(assets.app, name="assets")
reviews.app.add_typer(review_record.app)
desk.add_to(reviews.app)
app.add_typer(reviews.app, name="review")
app.add_typer(policies.app, name="policies")
app.add_typer(evidence.app, name="evidence")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(servers.app)
app.add_typer(evaluation.app)
app.add_typer(administration.app)


@app.callback(invoke_without_command=True)
def imprimatur(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
) -> None:
    """AI review as asynchronous jobs: submit, watch, let a person decide what the AI may not."""
    if version:
        typer.echo(importlib.metadata.version("imprimatur"))
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


def main() -> None:
    """The entry point; ends the process."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # never a bare TextIO in a process of ours
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Do what the arguments say; returns the exit code."""
    try:
        return _code(app(arguments, prog_name="imprimatur", standalone_mode=False))
    except typer.TyperException as error:
        if error.format_message():  # else help was asked for by saying nothing, and has been shown
            complain(_usage(error))
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except ImprimaturError as error:
        complain(str(error))
        return 1
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        complain(f"unexpected {type(error).__name__}: {error} (set {DEBUG_VARIABLE}=1 to see where)")
        return 1


def _code(returned: object) -> int:
    return returned if isinstance(returned, int) else 0


def _usage(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    hint = f" See '{context.command_path} --help'." if context is not None else ""
    return one_line(error.format_message()) + hint
