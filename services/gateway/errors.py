"""What goes wrong, as gRPC clients see it: one status, with google.rpc details as AIP-193 asks.

The only place where an exception becomes a status. Whatever is not a RequestError is a fault of ours: it is
logged with its trace under an incident id, and the client learns that id and nothing else.
"""

import math

import grpc
import structlog
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from imprimatur.errors import InvalidRequest, RequestError, Unavailable
from imprimatur.identity import new_id

log = structlog.get_logger(__name__)

#: The domain of every ErrorInfo.
DOMAIN = "imprimatur"


def status_of(error: RequestError) -> status_pb2.Status:
    """The google.rpc.Status of an error, for a call or for one item of a batch."""
    details: list[any_pb2.Any] = []
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    details.append(_packed(info))
    if isinstance(error, InvalidRequest):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.description)
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(math.ceil(error.retry_after_seconds * 1000))
        details.append(_packed(retry))
    return status_pb2.Status(code=code_pb2.Code.Value(error.code.name), message=error.message, details=details)


def known(fault: Exception, *, rpc: str) -> RequestError:
    """The error to answer with: the fault itself, or an INTERNAL one that says nothing of it."""
    if isinstance(fault, RequestError):
        return fault
    if isinstance(fault, TimeoutError):
        return Unavailable("the answer took too long; try again shortly", reason="TIMED_OUT")
    incident = str(new_id())
    log.error("a call failed unexpectedly", rpc=rpc, incident=incident, exc_info=fault)
    return RequestError(f"internal error; tell the operator the incident id {incident}", incident=incident)


def trailer_of(status: status_pb2.Status) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries a rich status."""
    return (("grpc-status-details-bin", status.SerializeToString()),)


def code_of(status: status_pb2.Status) -> grpc.StatusCode:
    """The status code as grpcio names it."""
    return grpc.StatusCode[code_pb2.Code.Name(status.code)]


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
