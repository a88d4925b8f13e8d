"""What a refusal says to its caller: the code, the ErrorInfo, the field, and the words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc.aio
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One google.rpc.Status, opened."""

    code: grpc.StatusCode
    message: str
    domain: str = ""
    reason: str = ""
    metadata: Mapping[str, str]
    violations: Mapping[str, str]  #: what the BadRequest says, by field
    retry_after_seconds: float | None = None
    size: int = 0  #: bytes of the whole


def refusal_of(status: status_pb2.Status) -> Refusal:
    """Open a Status, of a call or of one item of a batch."""
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    given = {detail.TypeName() for detail in status.details if any(detail.Unpack(one) for one in (info, bad, retry))}
    return Refusal(
        code=grpc.StatusCode[code_pb2.Code.Name(status.code)],
        message=status.message,
        domain=info.domain,
        reason=info.reason,
        metadata=dict(info.metadata),
        violations={one.field: one.description for one in bad.field_violations},
        retry_after_seconds=retry.retry_delay.ToTimedelta().total_seconds()
        if "google.rpc.RetryInfo" in given
        else None,
        size=status.ByteSize(),
    )


async def refusal(call: Any) -> Refusal:
    """Make the call to its end, which must be a refusal with details."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _ended(call)
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]  # it has what a call has
    assert status is not None, f"no details: {caught.value.code()} {caught.value.details()}"
    assert caught.value.details() == status.message
    return refusal_of(status)


async def _ended(call: Any) -> None:
    if isinstance(call, grpc.aio.UnaryStreamCall):
        while await call.read() is not grpc.aio.EOF:
            pass
    else:
        await call
