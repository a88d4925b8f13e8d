"""The gRPC port: limits, TLS, health, reflection, and a drain that ends every stream cleanly."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import cast

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_reflection.v1alpha import reflection

from gateway.health import Health
from gateway.interception import Edge
from gateway.watching import Watchtower
from imprimatur import metrics
from imprimatur.errors import ConfigurationError
from imprimatur.v1 import (
    admin_service_pb2,
    asset_service_pb2,
    job_service_pb2,
    policy_service_pb2,
    review_service_pb2,
    webhook_service_pb2,
)
from imprimatur.v1.admin_service_pb2_grpc import AdminServiceServicer, add_AdminServiceServicer_to_server
from imprimatur.v1.asset_service_pb2_grpc import AssetServiceServicer, add_AssetServiceServicer_to_server
from imprimatur.v1.job_service_pb2_grpc import JobServiceServicer, add_JobServiceServicer_to_server
from imprimatur.v1.policy_service_pb2_grpc import PolicyServiceServicer, add_PolicyServiceServicer_to_server
from imprimatur.v1.review_service_pb2_grpc import ReviewServiceServicer, add_ReviewServiceServicer_to_server
from imprimatur.v1.webhook_service_pb2_grpc import WebhookServiceServicer, add_WebhookServiceServicer_to_server

log = structlog.get_logger(__name__)

#: Calls that may be under way beside the streams.
ROOM_FOR_CALLS = 3000
_MEBIBYTE = 1024 * 1024
_DESCRIBED = (
    admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"],
    asset_service_pb2.DESCRIPTOR.services_by_name["AssetService"],
    job_service_pb2.DESCRIPTOR.services_by_name["JobService"],
    policy_service_pb2.DESCRIPTOR.services_by_name["PolicyService"],
    review_service_pb2.DESCRIPTOR.services_by_name["ReviewService"],
    webhook_service_pb2.DESCRIPTOR.services_by_name["WebhookService"],
)
SERVICES = tuple(service.full_name for service in _DESCRIBED)
#: Codes that are counted from zero on: the first failure would otherwise be no increase, but the birth of a series.
_COUNTED_FROM_ZERO = ("OK", "INTERNAL", "UNAVAILABLE", "UNKNOWN")


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Where and how the gRPC port listens.

    Without `certificate` and `private_key` it speaks plain text. With `client_ca` only clients with a
    certificate of that authority are let in (mutual TLS). All three are paths of PEM files.
    """

    host: str
    port: int
    certificate: Path | None = None
    private_key: Path | None = None
    client_ca: Path | None = None
    reflection: bool = False
    max_connection_age_seconds: int = 0  #: 0: connections live as long as their clients want
    most_calls: int = 15_000  #: under way at once, streams included; gRPC itself refuses more, without details


@dataclass(frozen=True, kw_only=True)
class Servicers:
    """What is served."""

    jobs: JobServiceServicer
    assets: AssetServiceServicer
    reviews: ReviewServiceServicer
    webhooks: WebhookServiceServicer
    administration: AdminServiceServicer
    policies: PolicyServiceServicer


@asynccontextmanager
async def grpc_port(
    listener: Listener,
    servicers: Servicers,
    edge: Edge,
    watchtower: Watchtower,
    health: Health,
    *,
    drain_seconds: float,
) -> AsyncIterator[int]:
    """Serve inside the block; gives the port (for port 0, the one chosen).

    At the end the server answers what it has begun, ends watches with UNAVAILABLE so that their clients go on
    elsewhere, and takes `drain_seconds` at most.
    """
    _count_from_zero()
    server = grpc.aio.server(
        interceptors=[edge], options=_options(listener), maximum_concurrent_rpcs=listener.most_calls
    )
    taking = cast(grpc.aio.Server, _Generic(server))
    add_JobServiceServicer_to_server(servicers.jobs, taking)
    add_AssetServiceServicer_to_server(servicers.assets, taking)
    add_ReviewServiceServicer_to_server(servicers.reviews, taking)
    add_WebhookServiceServicer_to_server(servicers.webhooks, taking)
    add_AdminServiceServicer_to_server(servicers.administration, taking)
    add_PolicyServiceServicer_to_server(servicers.policies, taking)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, taking)
    if listener.reflection:
        reflection.enable_server_reflection((*SERVICES, HEALTH_SERVICE, reflection.SERVICE_NAME), server)
    port = _bind(server, listener)
    await server.start()
    await health.start()
    log.info("gateway listens", port=port, tls=listener.certificate is not None)
    try:
        yield port
    finally:
        await health.stop()
        await watchtower.stop()
        await asyncio.shield(server.stop(drain_seconds))


class _Generic:
    """Gives a server the handlers of services as generic ones only. For registered methods grpcio holds one future
    each, and waits for all of them anew with every call that comes: with some thirty methods 30 µs a call."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, _service: str, _handlers: Mapping[str, object]) -> None:
        """They are among the generic ones."""


def _count_from_zero() -> None:
    for service in _DESCRIBED:
        for method, code in product(service.methods, _COUNTED_FROM_ZERO):
            metrics.rpc_requests.labels(method.name, code)


def _options(listener: Listener) -> list[tuple[str, int]]:
    options = [
        ("grpc.max_receive_message_length", 4 * _MEBIBYTE),
        ("grpc.max_send_message_length", 64 * _MEBIBYTE),
        # Thousands of watches may be opened at once; the default drops them.
        ("grpc.server.max_pending_requests", listener.most_calls),
        ("grpc.server.max_pending_requests_hard_limit", 2 * listener.most_calls),
        # While very many are opened at once some wait for long; the default of 30 s answers them with a bare CANCELLED.
        ("grpc.server_max_unrequested_time_in_server", 120),
        # All on one connection: beyond it a client waits and does not learn for what.
        ("grpc.max_concurrent_streams", listener.most_calls),
        ("grpc.so_reuseport", 0),
        # Clients may ping an idle watch, so that middleboxes keep it open.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
    if listener.max_connection_age_seconds:
        options.append(("grpc.max_connection_age_ms", listener.max_connection_age_seconds * 1000))
        options.append(("grpc.max_connection_age_grace_ms", 60_000))
    return options


def _bind(server: grpc.aio.Server, listener: Listener) -> int:
    address = f"{listener.host}:{listener.port}"
    secure = any((listener.certificate, listener.private_key, listener.client_ca))
    try:
        if secure:
            return server.add_secure_port(address, _credentials(listener))
        return server.add_insecure_port(address)
    except RuntimeError as fault:
        raise ConfigurationError(
            f"cannot listen on {address}: another process has that port, or the address is not this machine's "
            "(--port, IMPRIMATUR_GRPC_PORT and IMPRIMATUR_GRPC_HOST choose others)"
        ) from fault


def _credentials(listener: Listener) -> grpc.ServerCredentials:
    if listener.private_key is None or listener.certificate is None:
        raise ConfigurationError("IMPRIMATUR_TLS_CERTIFICATE and IMPRIMATUR_TLS_PRIVATE_KEY are needed together")
    try:
        pair = (listener.private_key.read_bytes(), listener.certificate.read_bytes())
        roots = listener.client_ca.read_bytes() if listener.client_ca else None
    except OSError as fault:
        raise ConfigurationError(f"cannot read {fault.filename}: {fault.strerror}") from fault
    return grpc.ssl_server_credentials([pair], root_certificates=roots, require_client_auth=roots is not None)
