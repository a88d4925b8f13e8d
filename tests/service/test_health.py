"""The standard services beside our own: health, which load balancers ask, and reflection, for grpcurl and the like."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gateway.server import SERVICES, Listener
from gateway.service import gateway
from imprimatur.v1 import (
    admin_service_pb2,
    asset_service_pb2,
    job_service_pb2,
    policy_service_pb2,
    review_service_pb2,
    webhook_service_pb2,
)
from tests.service.systems import CALL_SECONDS, System

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
OURS = {f"imprimatur.v1.{name}Service" for name in ("Admin", "Asset", "Job", "Policy", "Review", "Webhook")}


@asynccontextmanager
async def dialled(port: int) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


def health(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


async def check(channel: grpc.aio.Channel, service: str) -> Any:
    return await health(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=CALL_SECONDS)


def test_health_tells_of_every_service_there_is() -> None:
    modules = (
        admin_service_pb2,
        asset_service_pb2,
        job_service_pb2,
        policy_service_pb2,
        review_service_pb2,
        webhook_service_pb2,
    )
    files = [module.DESCRIPTOR for module in modules]
    assert {one.full_name for file in files for one in file.services_by_name.values()} == OURS == set(SERVICES)


async def test_health_is_told_without_a_key(system_on_postgresql: System) -> None:
    async with dialled(system_on_postgresql.port) as channel:
        for service in ("", *OURS):
            assert (await check(channel, service)).status == SERVING, service
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(channel, "imprimatur.v1.NoService")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_stopping_gateway_says_so_to_those_who_watch_its_health(system_on_postgresql: System) -> None:
    async with AsyncExitStack() as hung_up_last:
        async with system_on_postgresql.gateway(drain_seconds=0.2) as port:
            channel = await hung_up_last.enter_async_context(dialled(port))
            requests = [health_pb2.HealthCheckRequest(service=one) for one in ("", *OURS)]
            watches = [health(channel).Watch(request) for request in requests]
            for watch in watches:
                assert (await watch.read()).status == SERVING
            news = [asyncio.create_task(watch.read()) for watch in watches]
        assert [(await one).status for one in news] == [NOT_SERVING] * len(watches)


async def services_told(channel: grpc.aio.Channel) -> set[str]:
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast(Any, channel))  # typed for synchronous ones
    call = stub.ServerReflectionInfo(iter([asked]), timeout=CALL_SECONDS)
    return {one.name for one in (await call.read()).list_services_response.service}


async def test_reflection_lists_the_services_without_a_key(system_on_postgresql: System) -> None:
    async with dialled(system_on_postgresql.port) as channel:
        assert await services_told(channel) >= OURS | {"grpc.health.v1.Health"}


async def test_without_reflection_nothing_is_told_of_the_contract(system_on_postgresql: System) -> None:
    system = system_on_postgresql
    silent = Listener(host="127.0.0.1", port=0)
    async with (
        gateway(system.database, system.broker, system.vault, system.guard, silent, drain_seconds=0.1) as running,
        dialled(running.port) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await services_told(channel)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert (await check(channel, "")).status == SERVING
