"""AdminService: what a tenant's administrators do besides the daily work."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from gateway.access import caller
from gateway.cleaning import clean_for
from gateway.paging import foreign_token, position_of, token_of
from imprimatur.errors import InvalidRequest
from imprimatur.retention import Kind, Retention
from imprimatur.storage.database import Database
from imprimatur.storage.retention import Place
from imprimatur.v1 import admin_service_pb2 as pb
from imprimatur.v1.admin_service_pb2_grpc import AdminServiceServicer

_MOST_DAYS = 36_500


class Administration(AdminServiceServicer):
    """The service for a tenant's administrators."""

    def __init__(self, database: Database, retention: Retention) -> None:
        self._database = database
        self._retention = retention

    async def CleanUp(self, request: pb.CleanUpRequest, context: Any) -> pb.CleanUpResponse:
        """Remove what was kept for its days, for about a second."""
        if not 0 <= request.job_days <= _MOST_DAYS:
            raise InvalidRequest("job_days", f"is {request.job_days}, must be from 1 to {_MOST_DAYS} (0: as set)")
        retention = self._retention
        if request.job_days:
            retention = replace(retention, days={**retention.days, Kind.JOBS: request.job_days})
        asked = pb.CleanUpRequest(dry_run=request.dry_run, job_days=request.job_days)
        done = await clean_for(
            self._database,
            retention,
            caller().tenant_id,
            _place(request.page_token, asked),
            dry_run=request.dry_run,
        )
        return pb.CleanUpResponse(
            cleaned_up=[pb.CleanedUp(kind=kind, rows=number) for kind, number in done.rows.items() if number],
            next_page_token=_token(done.following, asked) if done.following is not None else "",
            job_days=retention.job_days,
        )


def _token(place: Place, asked: pb.CleanUpRequest) -> str:
    ended_at = place.ended_at.isoformat() if place.ended_at is not None else ""
    return token_of([place.kind, str(place.after), ended_at], asked)


def _place(token: str, asked: pb.CleanUpRequest) -> Place | None:
    parts = position_of(token, 3, asked)
    if parts is None:
        return None
    try:
        kind, after = Kind(parts[0]), uuid.UUID(parts[1])
        ended_at = datetime.fromisoformat(parts[2]).astimezone(UTC) if parts[2] else None
    except (ValueError, OverflowError):
        raise foreign_token() from None
    return Place(kind=kind, after=after, ended_at=ended_at)
