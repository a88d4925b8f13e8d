"""Clean-up, and evidence to be forgotten, as a client asks for it: as many calls as it takes, the answers as one."""

from collections import Counter
from typing import TYPE_CHECKING

from imprimatur.client.calls import Calls
from imprimatur.v1.admin_service_pb2 import CleanedUp, CleanUpRequest, CleanUpResponse, ForgetEvidenceRequest

if TYPE_CHECKING:  # stubs of calls exist for the type checker only
    from imprimatur.v1.admin_service_pb2_grpc import AdminServiceAsyncStub


async def clean_everything(calls: Calls, admin: "AdminServiceAsyncStub", request: CleanUpRequest) -> CleanUpResponse:
    """Go on until all was looked at. What a call did whose answer was lost is missing in the sum."""
    rows: Counter[str] = Counter()
    while True:
        answer = await calls.unary(admin.CleanUp, request, repeatable=True)
        for one in answer.cleaned_up:
            rows[one.kind] += one.rows
        if not answer.next_page_token:
            found = [CleanedUp(kind=kind, rows=number) for kind, number in rows.items()]
            return CleanUpResponse(cleaned_up=found, job_days=answer.job_days)
        request.page_token = answer.next_page_token


async def forget_everything(calls: Calls, admin: "AdminServiceAsyncStub", request: ForgetEvidenceRequest) -> int:
    """Go on until nothing is left of what the request names."""
    forgotten, more = 0, True
    while more:
        answer = await calls.unary(admin.ForgetEvidence, request, repeatable=True)
        forgotten, more = forgotten + answer.forgotten, answer.more
    return forgotten
