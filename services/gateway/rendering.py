"""What a watch sends: one version of a job, put into bytes once for all who watch it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from imprimatur.job import Job
from imprimatur.v1 import job_service_pb2 as pb
from imprimatur.wire.jobs import job_to_wire


class Version:
    """A job as it stood at one version. Small: once it was shown, only the bytes are kept."""

    __slots__ = ("_answer", "_job", "number", "terminal")

    def __init__(self, job: Job) -> None:
        self.number = job.version
        self.terminal = job.state.terminal
        self._job: Job | None = job
        self._answer = b""

    def answer(self, tenant: str) -> bytes:
        """The WatchJobResponse that shows it, and the WatchJobsResponse too: both have the job as their field 1.

        Args:
            tenant: the name of the tenant whose job it is.
        """
        if self._job is not None:
            self._answer = pb.WatchJobResponse(job=job_to_wire(self._job, tenant)).SerializeToString()
            self._job = None
        return self._answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A job as it was read, with what to send of it."""

    job: Job
    version: Version


def serializer(of_message: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """The same for messages; answers that are bytes already pass."""
    if of_message is None:
        return None

    def serialize(answer: Any) -> bytes:
        return answer if isinstance(answer, bytes) else of_message(answer)

    return serialize
