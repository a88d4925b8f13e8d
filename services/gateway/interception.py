"""The edge of every call: who calls, how long it may take, how it ended, in which trace, and what went wrong.

Handlers raise; nothing but this interceptor answers with a status other than OK.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from gateway import errors
from gateway.access import Doorkeeper, caller, serve_as
from gateway.deadlines import LONGEST_UPLOAD_SECONDS, allowed_seconds
from gateway.load import Load, Upload
from gateway.rendering import serializer
from imprimatur import metrics, tracing
from imprimatur.errors import InvalidRequest
from imprimatur.tracing import TRACEPARENT_HEADER, TRACESTATE_HEADER, Kind, Span, SpanContext

log = structlog.get_logger(__name__)

#: Served without a key, and not traced: they tell nothing about anybody's jobs.
_OPEN_SERVICES = ("/grpc.health.v1.Health/", "/grpc.reflection.")

#: Of an upload that is refused so much more is taken in: as much as the largest that is allowed.
_SWALLOWED_BYTES = 24 * 1024 * 1024
_SWALLOWED_SECONDS = 5.0

#: The codes that are this server's failure, and not its caller's or nobody's.
_OUR_FAILURES = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # subscriptable in the stubs alone
_Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]]"


class Edge(grpc.aio.ServerInterceptor):
    """Authenticates, times, counts and explains every call."""

    def __init__(self, doorkeeper: Doorkeeper, load: Load) -> None:
        self._doorkeeper = doorkeeper
        self._load = load
        self._wrapped: dict[str, _Handler] = {}  # by method: there are as many as are served

    async def intercept_service(
        self, continuation: _Continuation, details: grpc.HandlerCallDetails
    ) -> "_Handler | None":
        """Wrap the handler of one call."""
        method: str = details.method
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(details)
        if handler is None or method.startswith(_OPEN_SERVICES):
            return handler
        wrapped = self._wrapped[method] = self._wrap(handler, method)
        return wrapped

    def _wrap(self, handler: _Handler, method: str) -> _Handler:
        call = _Call(self._doorkeeper, self._load, method)
        parse = _parser(handler.request_deserializer)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                call.uploading(cast(Any, handler.stream_unary)), parse, handler.response_serializer
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                call.streaming(cast(Any, handler.unary_stream)), parse, serializer(handler.response_serializer)
            )
        return grpc.unary_unary_rpc_method_handler(
            call.unary(cast(Any, handler.unary_unary)), parse, handler.response_serializer
        )


class _Call:
    """One method's handlers, wrapped."""

    def __init__(self, doorkeeper: Doorkeeper, load: Load, method: str) -> None:
        self._doorkeeper = doorkeeper
        self._load = load
        self._method = method
        self._rpc = method.rpartition("/")[2]
        self._name = method.removeprefix("/")
        self._attributes = {"rpc.system.name": "grpc", "rpc.method": self._name}

    def unary(self, handle: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def answer(request: _Parsed, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            began = time.perf_counter()
            code = "CANCELLED"  # unless it ends in another way
            headers = _headers(context)
            with self._span(headers) as span:
                try:
                    async with asyncio.timeout(allowed_seconds(context)):
                        await self._admit(headers)
                        with self._load.request(request.size):
                            response = await handle(_begun(span, request.message), context)
                    code = "OK"
                    if span.recording:
                        _name_job(span, getattr(getattr(response, "job", None), "id", ""))
                except Exception as fault:  # noqa: BLE001  # the edge: every fault becomes a status here
                    status = self._status(fault)
                    code = errors.code_of(status).name
                    await context.abort(errors.code_of(status), status.message, errors.trailer_of(status))
                finally:
                    self._end(span, code)
                    metrics.rpc_seconds.labels(self._rpc, code).observe(time.perf_counter() - began)
            return response

        return answer

    def uploading(self, handle: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def answer(requests: AsyncIterator[_Parsed], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            began = time.perf_counter()
            code = "CANCELLED"  # unless it ends in another way
            headers = _headers(context)
            with self._span(headers) as span:
                try:
                    async with asyncio.timeout(allowed_seconds(context, longest_seconds=LONGEST_UPLOAD_SECONDS)):
                        await self._admit(headers)
                        with self._load.upload(caller()) as upload:
                            response = await handle(_counted(span, requests, upload), context)
                    code = "OK"
                except Exception as fault:  # noqa: BLE001  # the edge: every fault becomes a status here
                    status = self._status(fault)
                    code = errors.code_of(status).name
                    await _swallow(requests)
                    await context.abort(errors.code_of(status), status.message, errors.trailer_of(status))
                finally:
                    self._end(span, code)
                    metrics.rpc_seconds.labels(self._rpc, code).observe(time.perf_counter() - began)
            return response

        return answer

    def streaming(self, handle: Callable[[Any, Any], AsyncGenerator[Any]]) -> Callable[[Any, Any], Awaitable[None]]:
        async def stream(request: _Parsed, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            code = "CANCELLED"  # unless it ends in another way
            headers = _headers(context)
            with metrics.open_streams.labels(self._rpc).track_inprogress(), self._span(headers) as span:
                try:
                    async with asyncio.timeout(allowed_seconds(context)):
                        await self._admit(headers)
                    with self._load.stream(caller()):
                        async with aclosing(handle(_begun(span, request.message), context)) as responses:
                            async for response in responses:
                                await self._admit(headers)  # the key may have been revoked meanwhile
                                await context.write(response)
                    code = "OK"
                except Exception as fault:  # noqa: BLE001  # the edge: every fault becomes a status here
                    status = self._status(fault)
                    code = errors.code_of(status).name
                    await context.abort(errors.code_of(status), status.message, errors.trailer_of(status))
                finally:
                    self._end(span, code)

        return stream

    async def _admit(self, headers: Mapping[str, str]) -> None:
        serve_as(await self._doorkeeper.admit(headers.get("authorization"), self._method))

    def _span(self, headers: Mapping[str, str]) -> Span:
        parent = SpanContext.read(headers.get(TRACEPARENT_HEADER), headers.get(TRACESTATE_HEADER, ""))
        return tracing.continued(self._name, parent, self._attributes, kind=Kind.SERVER)

    def _status(self, fault: Exception) -> status_pb2.Status:
        return errors.status_of(errors.known(fault, rpc=self._rpc))

    def _end(self, span: Span, code: str) -> None:
        metrics.rpc_requests.labels(self._rpc, code).inc()
        span.set({"rpc.response.status_code": code})
        if code in _OUR_FAILURES:
            span.fail(code)


def _headers(context: grpc.aio.ServicerContext[Any, Any]) -> dict[str, str]:
    """The metadata of a call; of a header that comes twice, the last."""
    return {
        key: value.decode("latin-1") if isinstance(value, bytes) else value
        for key, value in context.invocation_metadata() or ()
    }


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A request as it came: the message, or what is wrong with its bytes, which number `size`."""

    message: Any
    size: int


def _parser(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], _Parsed] | None:
    """The deserializer, with its fault as a value: what it raises, grpcio would send to the client as it is."""
    if deserialize is None:
        return None

    def parse(data: bytes) -> _Parsed:
        try:
            return _Parsed(deserialize(data), len(data))
        except DecodeError as fault:
            return _Parsed(fault, len(data))

    return parse


def _begun(span: Span, request: Any) -> Any:
    """The parsed request of a caller who was let in; span and log lines now say whose it is, and about which job."""
    if isinstance(request, DecodeError):
        raise InvalidRequest("request", "is not a protobuf message of this method, or holds text that is not UTF-8")
    if span.recording:
        span.set({"imprimatur.tenant.id": str(caller().tenant_id)})
    _name_job(span, getattr(request, "job_id", ""))
    return request


async def _counted(span: Span, requests: AsyncIterator[_Parsed], upload: Upload) -> AsyncIterator[Any]:
    """The messages of an upload, which count as they come."""
    async for request in requests:
        upload.grow(request.size)
        yield _begun(span, request.message)


async def _swallow(requests: AsyncIterator[_Parsed]) -> None:
    """Take in what a refused client still sends, and keep nothing of it. A client that is refused in the middle of its
    sending may learn no more than that it cannot write (https://github.com/grpc/grpc/issues/36066)."""
    left = _SWALLOWED_BYTES
    with contextlib.suppress(TimeoutError, grpc.aio.UsageError):
        async with asyncio.timeout(_SWALLOWED_SECONDS):
            async for request in requests:
                left -= request.size
                if left < 0:
                    return


def _name_job(span: Span, text: str) -> None:
    """Say which job a call is about; what is no id is the handler's to refuse."""
    if not text:
        return
    with contextlib.suppress(ValueError):
        job_id = str(uuid.UUID(text))
        structlog.contextvars.bind_contextvars(job_id=job_id)  # for as long as the call: its context is its own
        span.set({"imprimatur.job.id": job_id})
