"""WebhookService: the tenant's endpoints."""

from typing import Any

from gateway import validation
from gateway.access import caller
from imprimatur import webhooks
from imprimatur.errors import InvalidRequest
from imprimatur.guard import Guard
from imprimatur.job import WEBHOOK_EVENT_TYPES
from imprimatur.storage import webhooks as stored
from imprimatur.storage.database import Database
from imprimatur.storage.webhooks import Endpoint
from imprimatur.v1 import webhook_service_pb2 as pb
from imprimatur.v1.webhook_service_pb2_grpc import WebhookServiceServicer
from imprimatur.vault import Vault
from imprimatur.wire.creatives import timestamp


class Webhooks(WebhookServiceServicer):
    """The service for those who want to hear of outcomes."""

    def __init__(self, database: Database, vault: Vault, guard: Guard) -> None:
        self._database = database
        self._vault = vault
        self._guard = guard

    async def CreateWebhookEndpoint(
        self, request: pb.CreateWebhookEndpointRequest, context: Any
    ) -> pb.CreateWebhookEndpointResponse:
        """Add an endpoint; the answer shows its secret, once."""
        validation.without_nul(request)
        validation.text_within(request.url, "url", 2000, required=True)
        self._guard.check_url(request.url, "url")
        description = validation.text_within(request.description, "description", 500)
        async with self._database.begin() as tx:
            made = await webhooks.create_endpoint(
                tx,
                self._vault,
                caller().tenant_id,
                url=request.url,
                description=description,
                event_types=_event_types(request),
            )
        return pb.CreateWebhookEndpointResponse(endpoint=_shown(made.endpoint), secret=made.secret)

    async def ListWebhookEndpoints(
        self, request: pb.ListWebhookEndpointsRequest, context: Any
    ) -> pb.ListWebhookEndpointsResponse:
        """The tenant's endpoints, oldest first."""
        async with self._database.read() as reader:
            endpoints = await stored.list_endpoints(reader, caller().tenant_id)
        return pb.ListWebhookEndpointsResponse(endpoints=[_shown(endpoint) for endpoint in endpoints])

    async def DeleteWebhookEndpoint(
        self, request: pb.DeleteWebhookEndpointRequest, context: Any
    ) -> pb.DeleteWebhookEndpointResponse:
        """Remove an endpoint."""
        endpoint_id = validation.id_of(request.endpoint_id, "endpoint_id")
        async with self._database.begin() as tx:
            await stored.delete_endpoint(tx, caller().tenant_id, endpoint_id)
        return pb.DeleteWebhookEndpointResponse()


def _event_types(request: pb.CreateWebhookEndpointRequest) -> list[str]:
    for place, name in enumerate(request.event_types):
        if name not in WEBHOOK_EVENT_TYPES:
            allowed = ", ".join(WEBHOOK_EVENT_TYPES)
            raise InvalidRequest(f"event_types[{place}]", f"{name[:70]!r} is not one of {allowed}")
    return sorted(set(request.event_types))


def _shown(endpoint: Endpoint) -> pb.WebhookEndpoint:
    return pb.WebhookEndpoint(
        id=str(endpoint.id),
        url=endpoint.url,
        description=endpoint.description,
        event_types=endpoint.event_types,
        create_time=timestamp(endpoint.created_at),
    )
