"""A gateway that follows a script, on a real socket: for what only a server that misbehaves on cue can show.

What the real gateway does is tested against the real gateway.
"""

import asyncio
import dataclasses
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from imprimatur.v1 import asset_service_pb2, job_service_pb2, review_service_pb2, webhook_service_pb2

_SERVICES = {
    name: descriptor
    for module in (asset_service_pb2, job_service_pb2, review_service_pb2, webhook_service_pb2)
    for name, descriptor in module.DESCRIPTOR.services_by_name.items()
}

Context = aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Fault:
    """A call ends so, with the details that the gateway would send."""

    code: grpc.StatusCode
    message: str = "as the script says"
    reason: str = ""
    field: str = ""
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    retry_after_ms: int | None = None

    def status(self) -> status_pb2.Status:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain="imprimatur", metadata=self.metadata)
        violation = error_details_pb2.BadRequest.FieldViolation(field=self.field, description=self.message)
        details: list[Message] = [
            info,
            error_details_pb2.BadRequest(field_violations=[violation] if self.field else []),
        ]
        if self.retry_after_ms is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(self.retry_after_ms)
            details.append(retry)
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        return status


UNAVAILABLE = Fault(grpc.StatusCode.UNAVAILABLE, "going away", "GATEWAY_STOPPING")


@dataclass(frozen=True)
class Hang:
    """The call says nothing more until its caller leaves."""


HANG = Hang()
Step = Message | Fault | Hang | Callable[[Any], Message | Fault]


@dataclass
class Script:
    """What is to be answered, per rpc, call by call; the last entry answers all further calls."""

    answers: dict[str, list[list[Step]]] = dataclasses.field(default_factory=dict)
    requests: defaultdict[str, list[Any]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    headers: list[dict[str, str]] = dataclasses.field(default_factory=list)
    left: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)  #: a caller left a call that hung

    def on(self, rpc: str, *calls: Step | list[Step]) -> "Script":
        """Answer the first call of `rpc` by the first of `calls`, and so on; a list is a stream."""
        self.answers[rpc] = [call if isinstance(call, list) else [call] for call in calls]
        return self

    async def play(self, rpc: str, request: Any, context: Context) -> AsyncIterator[Message]:
        """The answers to one call."""
        self.headers.append({key: str(value) for key, value in context.invocation_metadata() or ()})
        self.requests[rpc].append(request)
        calls = self.answers.get(rpc, [[Fault(grpc.StatusCode.UNIMPLEMENTED, f"{rpc} is not in the script")]])
        for planned in calls[min(len(self.requests[rpc]), len(calls)) - 1]:
            step = planned(request) if callable(planned) else planned
            if isinstance(step, Fault):
                await context.abort(
                    step.code, step.message, (("grpc-status-details-bin", step.status().SerializeToString()),)
                )
            elif isinstance(step, Hang):
                await self._hang()
            else:
                yield step

    async def _hang(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()


def _handlers(script: Script) -> list[grpc.GenericRpcHandler]:
    return [
        grpc.method_handlers_generic_handler(
            service.full_name, {method.name: _handler(script, method) for method in service.methods}
        )
        for service in _SERVICES.values()
    ]


def _handler(script: Script, method: Any) -> "grpc.RpcMethodHandler[Any, Any]":
    async def stream(request: Any, context: Context) -> AsyncIterator[Message]:
        async for answer in script.play(method.name, request, context):
            yield answer

    async def unary(request: Any, context: Context) -> Message:
        async for answer in script.play(method.name, request, context):
            return answer
        raise AssertionError(f"the script has no answer for {method.name}")

    async def upload(requests: AsyncIterator[Any], context: Context) -> Message:
        return await unary([request async for request in requests], context)

    make, handle = (
        (grpc.stream_unary_rpc_method_handler, upload)
        if method.client_streaming
        else (grpc.unary_stream_rpc_method_handler, stream)
        if method.server_streaming
        else (grpc.unary_unary_rpc_method_handler, unary)
    )
    return make(
        handle,
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


@asynccontextmanager
async def serving(
    script: Script,
    *,
    port: int = 0,
    credentials: grpc.ServerCredentials | None = None,
    options: Sequence[tuple[str, int]] = (),
) -> AsyncIterator[int]:
    """Serve the script inside the block; gives the port. Leaving the block cuts every connection."""
    server = aio.server(options=[("grpc.so_reuseport", 0), *options])
    server.add_generic_rpc_handlers(_handlers(script))
    address = f"127.0.0.1:{port}"
    bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(None)
