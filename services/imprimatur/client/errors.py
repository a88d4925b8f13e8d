"""What a call can end with instead of an answer, and how that is read from gRPC. No calls are made here."""

from collections.abc import Mapping

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from imprimatur.errors import ImprimaturError

#: The trailer that carries a google.rpc.Status (AIP-193).
DETAILS_TRAILER = "grpc-status-details-bin"

_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

_TOO_LARGE = "SERVER: Received message larger than max"


class ClientError(ImprimaturError):
    """A call was refused, or no answer came.

    Attributes:
        code: the gRPC status.
        reason: the stable UPPER_SNAKE_CASE identifier to branch on, such as "REQUEST_ID_REUSED"; empty when
            the answer is not the gateway's, as when no server could be reached.
        field: the path of the field at fault, such as "items[3].labels"; empty when it is not about one.
        message: a sentence for people.
        metadata: machine-readable details, by reason.
        retry_after_seconds: how long the gateway asks to wait before the same call; None: it does not say.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.field = field
        self.metadata = dict(metadata or {})
        self.retry_after_seconds = retry_after_seconds

    def __repr__(self) -> str:
        return f"ClientError({self.code.name}, {self.message!r}, reason={self.reason!r}, field={self.field!r})"

    @property
    def passing(self) -> bool:
        """Whether the same call may succeed soon: the server is away, the connection to it broke, or a limit is
        reached under which there will be room again.

        A broken HTTP/2 stream shows as INTERNAL "… RST_STREAM …" or CANCELLED, made by the transport: it has no
        reason, unlike every answer of the gateway.
        """
        if self.code is grpc.StatusCode.UNAVAILABLE or self.throttled:
            return True
        reset = self.code is grpc.StatusCode.INTERNAL and "RST_STREAM" in self.message
        return not self.reason and (reset or self.code is grpc.StatusCode.CANCELLED)

    @property
    def throttled(self) -> bool:
        """Whether a limit is reached, and the gateway says when to come again."""
        return self.code is grpc.StatusCode.RESOURCE_EXHAUSTED and self.retry_after_seconds is not None

    @classmethod
    def of(cls, error: aio.AioRpcError) -> "ClientError":
        """From what grpc raised."""
        status = _status_in(error)
        if status is not None:
            return cls.of_status(status, code=error.code())
        message = error.details() or f"the call ended with {error.code().name}"
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in message:  # gRPC's own, with no reason
            message += "; texts and inline images of one call have 4 MiB together: upload images, or send less at once"
        return cls(error.code(), message)

    @classmethod
    def of_status(cls, status: status_pb2.Status, *, code: grpc.StatusCode | None = None) -> "ClientError":
        """From a google.rpc.Status with its ErrorInfo, BadRequest and RetryInfo. `code` overrides the status' own."""
        info = error_details_pb2.ErrorInfo()
        fault = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        for detail in status.details:
            for known in (info, fault, retry):
                if detail.Is(known.DESCRIPTOR):
                    detail.Unpack(known)
        waits = retry.HasField("retry_delay")
        field = fault.field_violations[0].field if fault.field_violations else info.metadata.get("field", "")
        return cls(
            code or _CODES.get(status.code, grpc.StatusCode.UNKNOWN),
            status.message,
            reason=info.reason,
            field=field,
            metadata=info.metadata,
            retry_after_seconds=max(0.0, retry.retry_delay.ToTimedelta().total_seconds()) if waits else None,
        )


def _status_in(error: aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_TRAILER and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None
