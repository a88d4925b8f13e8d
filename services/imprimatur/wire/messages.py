"""The bodies of broker messages."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from imprimatur.errors import MalformedMessage
from imprimatur.job import State
from imprimatur.v1 import job_pb2, message_pb2

#: The version of the bodies that this code writes and reads.
FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Released:
    """A job that is put up for claiming, and by which release."""

    job_id: uuid.UUID
    release_no: int


@dataclass(frozen=True, kw_only=True)
class ReviewRequested:
    """There are jobs to claim; at least one."""

    jobs: Sequence[Released]

    def encode(self) -> bytes:
        """The message's body."""
        first, *others = self.jobs
        return message_pb2.ReviewRequested(
            format=FORMAT,
            job_id=first.job_id.bytes,
            release_no=first.release_no,
            others=[message_pb2.ReleasedJob(job_id=one.job_id.bytes, release_no=one.release_no) for one in others],
        ).SerializeToString()

    @classmethod
    def decode(cls, body: bytes) -> "ReviewRequested":
        """Raises MalformedMessage for anything that is not a body of this format."""
        parsed = message_pb2.ReviewRequested()
        _parse(parsed, body)
        first = Released(job_id=_uuid(parsed.job_id), release_no=parsed.release_no)
        others = (Released(job_id=_uuid(one.job_id), release_no=one.release_no) for one in parsed.others)
        return cls(jobs=[first, *others])


@dataclass(frozen=True, kw_only=True, slots=True)
class JobChange:
    """A job has a new version."""

    job_id: uuid.UUID
    tenant_id: uuid.UUID
    version: int
    state: State


@dataclass(frozen=True, kw_only=True)
class JobsChanged:
    """What one transaction did to jobs, all in the same way."""

    changes: Sequence[JobChange]

    def encode(self) -> bytes:
        """The message's body."""
        return message_pb2.JobsChanged(
            format=FORMAT,
            changes=[
                message_pb2.JobChange(
                    job_id=one.job_id.bytes,
                    tenant_id=one.tenant_id.bytes,
                    version=one.version,
                    state=_TO_WIRE[one.state],
                )
                for one in self.changes
            ],
        ).SerializeToString()

    @classmethod
    def decode(cls, body: bytes) -> "JobsChanged":
        """Raises MalformedMessage for anything that is not a body of this format."""
        parsed = message_pb2.JobsChanged()
        _parse(parsed, body)
        return cls(
            changes=[
                JobChange(
                    job_id=_uuid(one.job_id),
                    tenant_id=_uuid(one.tenant_id),
                    version=one.version,
                    state=_state(one.state),
                )
                for one in parsed.changes
            ]
        )


_TO_WIRE = {state: job_pb2.JobState.Value(f"JOB_STATE_{state.name}") for state in State}
_FROM_WIRE: dict[int, State] = {value: state for state, value in _TO_WIRE.items()}


def _state(value: int) -> State:
    if value not in _FROM_WIRE:
        raise MalformedMessage(f"unknown state {value}")
    return _FROM_WIRE[value]


def _parse(parsed: message_pb2.ReviewRequested | message_pb2.JobsChanged, body: bytes) -> None:
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
