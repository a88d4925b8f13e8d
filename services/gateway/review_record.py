"""The record of the human queue, as people look it up: who did what, when, with which key, and why."""

import uuid

from gateway import validation
from gateway.paging import foreign_token, position_of, token_of
from gateway.validation import id_of
from imprimatur.human import AuditAction
from imprimatur.storage import audit
from imprimatur.storage.database import Database
from imprimatur.storage.jobs import Owner
from imprimatur.v1 import review_service_pb2 as pb
from imprimatur.wire.reviews import entry_to_wire


async def page(database: Database, owner: Owner, request: pb.ListAuditEntriesRequest) -> pb.ListAuditEntriesResponse:
    """A page of the entries about the owner's jobs, newest first."""
    validation.without_nul(request)
    size = validation.page_size_within(request.page_size, 50, 500)
    wanted = audit.Wanted(
        job_id=id_of(request.job_id) if request.job_id else None,
        person=validation.text_within(request.person, "person", 200),
        actions=validation.members_of(pb.AuditAction, "AUDIT_ACTION", request.actions, AuditAction, "actions"),
        since=validation.instant_of(request.since, "since"),
        until=validation.instant_of(request.until, "until"),
    )
    mark = pb.ListAuditEntriesRequest()
    mark.CopyFrom(request)
    mark.ClearField("page_size")
    mark.ClearField("page_token")
    position = position_of(request.page_token, 1, mark)
    before = _id_in_token(position[0]) if position else None
    async with database.read() as reader:
        found = await audit.page(reader, owner, wanted, before=before, limit=size + 1)
    shown = found[:size]
    return pb.ListAuditEntriesResponse(
        entries=[entry_to_wire(entry) for entry in shown],
        next_page_token=token_of([str(shown[-1].id)], mark) if len(found) > size else "",
    )


def _id_in_token(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise foreign_token() from None
