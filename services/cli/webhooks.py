"""`imprimatur webhooks`: the addresses that hear of outcomes."""

from typing import Annotated

import typer
from rich.table import Table

from cli import tables
from cli.commands import Session, client_command
from cli.output import note, plain
from imprimatur.job import WEBHOOK_EVENT_TYPES
from imprimatur.v1.webhook_service_pb2 import (
    DeleteWebhookEndpointResponse,
    ListWebhookEndpointsResponse,
    WebhookEndpoint,
)

app = typer.Typer(help="Where outcomes are told.")

EventsOption = Annotated[
    list[str] | None,
    typer.Option("--event", help=f"May be given often; default: all of {', '.join(WEBHOOK_EVENT_TYPES)}."),
]


@client_command(app, "create")
async def create(
    session: Session,
    *,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where messages are posted.")],
    description: Annotated[str, typer.Option("--description", help="Your own words for it.")] = "",
    event: EventsOption = None,
) -> None:
    """Add an endpoint. Its secret is shown now and never again."""
    answer = await session.client.create_webhook_endpoint(url, description=description, event_types=event or ())
    note("keep the secret: it verifies signatures, and it is not shown again")
    facts = [("endpoint", answer.endpoint.id), ("url", answer.endpoint.url), ("secret", answer.secret)]
    session.output.show(answer, lambda: tables.facts(facts))


@client_command(app, "list")
async def list_endpoints(session: Session) -> None:
    """List the endpoints, oldest first."""
    found = await session.client.list_webhook_endpoints()
    session.output.show(ListWebhookEndpointsResponse(endpoints=found), lambda: _endpoints(found))


@client_command(app, "delete")
async def delete(
    session: Session, *, endpoint_id: Annotated[str, typer.Argument(metavar="ENDPOINT_ID", help="An endpoint's id.")]
) -> None:
    """Remove an endpoint; what is still to be delivered to it is given up."""
    await session.client.delete_webhook_endpoint(endpoint_id)
    session.output.show(DeleteWebhookEndpointResponse(), lambda: plain(f"deleted {endpoint_id}"))


def _endpoints(found: list[WebhookEndpoint]) -> Table:
    made = tables.table("ENDPOINT", "EVENTS", "CREATED", "DESCRIPTION", "URL")
    for endpoint in found:
        made.add_row(
            plain(endpoint.id),
            plain(", ".join(endpoint.event_types) or "all"),
            tables.when(endpoint.create_time),
            plain(endpoint.description),
            plain(endpoint.url),
        )
    return made
