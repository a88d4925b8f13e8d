"""How a command that speaks to a server is declared: its own options, and those that all of them share.

A command is an async function that takes a Session first. `client_command` adds the connection's options and
`--json`, opens the client, and explains errors of the connection.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Concatenate, ParamSpec

import grpc
import typer

from cli import connection
from cli.connection import Connection
from cli.output import Output
from imprimatur.client import Client, ClientError
from imprimatur.errors import ImprimaturError

Own = ParamSpec("Own")

_JSON = inspect.Parameter(
    "as_json",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--json", help="JSON on standard output, one object a line in streams.")],
)
_CONNECTION = tuple(inspect.signature(connection.resolve).parameters.values())


@dataclass(frozen=True, kw_only=True)
class Session:
    """What every command has."""

    client: Client
    output: Output


class CommandFailed(ImprimaturError):
    """The command cannot be done; the message says why and what to do."""


ClientCommand = Callable[Concatenate[Session, Own], Awaitable[None]]


def client_command(app: typer.Typer, name: str) -> Callable[[ClientCommand[Own]], ClientCommand[Own]]:
    """Add the decorated function to `app` as the command `name`; its docstring is the help."""

    def add(function: ClientCommand[Own]) -> ClientCommand[Own]:
        _, *own = inspect.signature(function).parameters.values()

        def command(**values: Any) -> None:
            output = Output(as_json=values.pop(_JSON.name))
            reached = connection.resolve(**{option.name: values.pop(option.name) for option in _CONNECTION})
            asyncio.run(_do(function, reached, output, values))

        command.__signature__ = inspect.Signature([*own, _JSON, *_CONNECTION])  # type: ignore[attr-defined]  # read by Typer
        app.command(name, help=inspect.getdoc(function))(command)
        return function

    return add


def client_default(app: typer.Typer) -> Callable[[ClientCommand[Own]], ClientCommand[Own]]:
    """Have the decorated function done when `app` is called without a command; its docstring is the help."""

    def add(function: ClientCommand[Own]) -> ClientCommand[Own]:
        _, *own = inspect.signature(function).parameters.values()

        def command(context: typer.Context, **values: Any) -> None:
            if context.invoked_subcommand is not None:
                given = [
                    name for name in values if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
                ]
                if given:
                    raise typer.BadParameter(f"put options behind '{context.invoked_subcommand}'")
                return
            output = Output(as_json=False)
            reached = connection.resolve(**{option.name: values.pop(option.name) for option in _CONNECTION})
            asyncio.run(_do(function, reached, output, values))

        first = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        command.__signature__ = inspect.Signature([first, *own, *_CONNECTION])  # type: ignore[attr-defined]  # read by Typer
        app.callback(invoke_without_command=True, help=inspect.getdoc(function))(command)
        return function

    return add


async def _do(function: Callable[..., Awaitable[None]], reached: Connection, output: Output, own: Any) -> None:
    async with reached.open() as client:
        try:
            await function(Session(client=client, output=output), **own)
        except ClientError as error:
            raise CommandFailed(explained(error, reached.told)) from error


def explained(error: ClientError, target: str) -> str:
    """What went wrong between us and the server, and what to do."""
    if error.code is grpc.StatusCode.UNAUTHENTICATED:
        return f"{error.message}; give a key that is valid at {target} by --api-key or IMPRIMATUR_API_KEY"
    if error.code is grpc.StatusCode.UNAVAILABLE and not error.reason:
        return (
            f"no server answers at {target}: is it running, is the address right, does it speak TLS? ({error.message})"
        )
    if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"{target} did not answer in time; try again, or look at 'imprimatur status'"
    return error.message
