"""`python -m gateway`: settings from the environment, everything put together, until SIGTERM."""

from gateway.server import ROOM_FOR_CALLS, Listener
from gateway.service import gateway
from gateway.settings import GatewaySettings
from imprimatur.process import run_service, surroundings
from imprimatur.runtime import StopSignal, http_port


async def run(settings: GatewaySettings, stop: StopSignal) -> None:
    """Run a gateway as these settings say, until SIGTERM or SIGINT."""
    vault = settings.open_vault()
    listener = Listener(
        host=settings.grpc_host,
        port=settings.grpc_port,
        certificate=settings.tls_certificate,
        private_key=settings.tls_private_key,
        client_ca=settings.tls_client_ca,
        reflection=settings.grpc_reflection,
        max_connection_age_seconds=settings.grpc_max_connection_age_seconds,
        most_calls=settings.streams + ROOM_FOR_CALLS,
    )
    async with (
        http_port(settings.http_host, settings.gateway_http_port) as http,
        surroundings(settings, http, name="gateway") as around,
        gateway(
            around.database,
            around.broker,
            vault,
            settings.guard(),
            listener,
            allowance=settings.allowance(),
            lease_seconds=settings.lease_seconds,
            retention=settings.retention(),
            due=settings.due_hours(),
            most_asset_bytes=settings.image_bytes,
            drain_seconds=settings.drain_seconds,
        ),
        # Not the broker: without it jobs are accepted, shown and cancelled, and it would be away for every gateway.
        http.ready({"database": around.database_answers}),
    ):
        await stop.wait()


if __name__ == "__main__":
    run_service(GatewaySettings, run)
