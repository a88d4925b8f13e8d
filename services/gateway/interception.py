"""The edge of every call: who calls, how long it may take, how it ended, and what went wrong.

Handlers raise; nothing but this interceptor answers with a status other than OK.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, cast

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from gateway import errors
from gateway.access import Doorkeeper, serve_as
from gateway.deadlines import allowed_seconds
from imprimatur import metrics
from imprimatur.errors import InvalidRequest

log = structlog.get_logger(__name__)

#: Served without a key: they tell nothing about anybody's jobs.
_OPEN_SERVICES = ("/grpc.health.v1.Health/", "/grpc.reflection.")

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # subscriptable in the stubs alone
_Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]]"


class Edge(grpc.aio.ServerInterceptor):
    """Authenticates, times, counts and explains every call."""

    def __init__(self, doorkeeper: Doorkeeper) -> None:
        self._doorkeeper = doorkeeper

    async def intercept_service(
        self, continuation: _Continuation, details: grpc.HandlerCallDetails
    ) -> "_Handler | None":
        """Wrap the handler of one call."""
        handler = await continuation(details)
        method: str = details.method
        if handler is None or method.startswith(_OPEN_SERVICES):
            return handler
        call = _Call(self._doorkeeper, method)
        parse = _parser(handler.request_deserializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                call.streaming(cast(Any, handler.unary_stream)), parse, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            call.unary(cast(Any, handler.unary_unary)), parse, handler.response_serializer
        )


class _Call:
    """One method's handlers, wrapped."""

    def __init__(self, doorkeeper: Doorkeeper, method: str) -> None:
        self._doorkeeper = doorkeeper
        self._method = method
        self._rpc = method.rpartition("/")[2]

    def unary(self, handle: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            began = time.perf_counter()
            code = "CANCELLED"  # unless it ends in another way
            try:
                async with asyncio.timeout(allowed_seconds(context)):
                    await self._admit(context)
                    response = await handle(_parsed(request), context)
                code = "OK"
            except Exception as fault:  # noqa: BLE001  # the edge: every fault becomes a status here
                status = self._status(fault)
                code = errors.code_of(status).name
                await context.abort(errors.code_of(status), status.message, errors.trailer_of(status))
            finally:
                self._count(code)
                metrics.rpc_seconds.labels(self._rpc, code).observe(time.perf_counter() - began)
            return response

        return answer

    def streaming(self, handle: Callable[[Any, Any], AsyncIterator[Any]]) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            code = "CANCELLED"  # unless it ends in another way
            with metrics.open_streams.labels(self._rpc).track_inprogress():
                try:
                    async with asyncio.timeout(allowed_seconds(context)):
                        await self._admit(context)
                    async for response in handle(_parsed(request), context):
                        await self._admit(context)  # the key may have been revoked meanwhile
                        yield response
                    code = "OK"
                except Exception as fault:  # noqa: BLE001  # the edge: every fault becomes a status here
                    status = self._status(fault)
                    code = errors.code_of(status).name
                    await context.abort(errors.code_of(status), status.message, errors.trailer_of(status))
                finally:
                    self._count(code)

        return stream

    async def _admit(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        authorization = dict(context.invocation_metadata() or ()).get("authorization")
        text = authorization.decode("latin-1") if isinstance(authorization, bytes) else authorization
        serve_as(await self._doorkeeper.admit(text, self._method))

    def _status(self, fault: Exception) -> status_pb2.Status:
        return errors.status_of(errors.known(fault, rpc=self._rpc))

    def _count(self, code: str) -> None:
        metrics.rpc_requests.labels(self._rpc, code).inc()


def _parser(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """The deserializer, with its fault as a value: what it raises, grpcio would send to the client as it is."""
    if deserialize is None:
        return None

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as fault:
            return fault

    return parse


def _parsed(request: Any) -> Any:
    if isinstance(request, DecodeError):
        raise InvalidRequest("request", "is not a protobuf message of this method, or holds text that is not UTF-8")
    return request
