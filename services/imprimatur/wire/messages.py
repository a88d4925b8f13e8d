"""The bodies of broker messages."""

import uuid
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from imprimatur.errors import MalformedMessage
from imprimatur.job import State
from imprimatur.v1 import job_pb2, message_pb2

#: The version of the bodies that this code writes and reads.
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ReviewRequested:
    """There is a job to claim."""

    job_id: uuid.UUID
    release_no: int

    def encode(self) -> bytes:
        """The message's body."""
        return message_pb2.ReviewRequested(
            format=FORMAT, job_id=self.job_id.bytes, release_no=self.release_no
        ).SerializeToString()

    @classmethod
    def decode(cls, body: bytes) -> "ReviewRequested":
        """Raises MalformedMessage for anything that is not a body of this format."""
        parsed = message_pb2.ReviewRequested()
        _parse(parsed, body)
        return cls(job_id=_uuid(parsed.job_id), release_no=parsed.release_no)


@dataclass(frozen=True, kw_only=True)
class JobChanged:
    """A job has a new version."""

    job_id: uuid.UUID
    tenant_id: uuid.UUID
    version: int
    state: State

    def encode(self) -> bytes:
        """The message's body."""
        return message_pb2.JobChanged(
            format=FORMAT,
            job_id=self.job_id.bytes,
            tenant_id=self.tenant_id.bytes,
            version=self.version,
            state=job_pb2.JobState.Value(f"JOB_STATE_{self.state.name}"),
        ).SerializeToString()

    @classmethod
    def decode(cls, body: bytes) -> "JobChanged":
        """Raises MalformedMessage for anything that is not a body of this format."""
        parsed = message_pb2.JobChanged()
        _parse(parsed, body)
        try:
            state = State[job_pb2.JobState.Name(parsed.state).removeprefix("JOB_STATE_")]
        except (KeyError, ValueError):
            raise MalformedMessage(f"unknown state {parsed.state}") from None
        return cls(
            job_id=_uuid(parsed.job_id),
            tenant_id=_uuid(parsed.tenant_id),
            version=parsed.version,
            state=state,
        )


def _parse(parsed: message_pb2.ReviewRequested | message_pb2.JobChanged, body: bytes) -> None:
    try:
        parsed.ParseFromString(body)
    except DecodeError:
        raise MalformedMessage("not a protobuf message of this kind") from None
    if parsed.format != FORMAT:
        raise MalformedMessage(f"format {parsed.format}, this version reads {FORMAT}")


def _uuid(data: bytes) -> uuid.UUID:
    if len(data) != 16:
        raise MalformedMessage(f"an id of {len(data)} bytes, must be 16")
    return uuid.UUID(bytes=data)
