"""AdminService: clean-up and kept evidence for a tenant's administrators, and what an operator sets for tenants."""

import math
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from google.protobuf.wrappers_pb2 import DoubleValue, UInt32Value, UInt64Value

from gateway import evidence
from gateway.access import caller
from gateway.cleaning import clean_for
from gateway.paging import foreign_token, position_of, token_of
from gateway.quotas import Allowance
from gateway.validation import text_within, without_nul
from imprimatur.budgets import MICROS, MOST_DOLLARS, MOST_TOKENS, Budget, Used
from imprimatur.errors import InvalidRequest
from imprimatur.retention import Kind, Retention
from imprimatur.storage import spending, tenants
from imprimatur.storage.database import Database
from imprimatur.storage.retention import Place
from imprimatur.tenancy import MOST_A_SECOND, MOST_AT_ONCE, MOST_BYTES, Limits
from imprimatur.v1 import admin_service_pb2 as pb
from imprimatur.v1.admin_service_pb2_grpc import AdminServiceServicer

_MOST_DAYS = 36_500


class Administration(AdminServiceServicer):
    """The service for administrators of tenants, and for those who run the system for many of these."""

    def __init__(self, database: Database, retention: Retention, allowance: Allowance) -> None:
        self._database = database
        self._retention = retention
        self._allowance = allowance

    # --- clean-up ----------------------------------------------------------------------------------------

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

    # --- evidence ----------------------------------------------------------------------------------------

    async def GetEvidenceStats(self, request: pb.GetEvidenceStatsRequest, context: Any) -> pb.GetEvidenceStatsResponse:
        """What the tenant's evidence was good for."""
        return await evidence.use_of(self._database, caller().tenant_id)

    async def ForgetEvidence(self, request: pb.ForgetEvidenceRequest, context: Any) -> pb.ForgetEvidenceResponse:
        """Have equal creatives examined anew."""
        return await evidence.forget(self._database, caller().tenant_id, request)

    # --- limits ------------------------------------------------------------------------------------------

    async def GetTenantLimits(self, request: pb.GetTenantLimitsRequest, context: Any) -> pb.GetTenantLimitsResponse:
        """What a tenant may take, and what it may spend."""
        name = _name_in(request)
        async with self._database.read() as reader:
            own = await tenants.limits_of(reader, name)
            budget, used = await spending.by_name(reader, name)
        return pb.GetTenantLimitsResponse(
            own=_shown(own), effective=self._effective(own), budget=_budget_shown(budget), spent_today=_spent(used)
        )

    async def SetTenantLimits(self, request: pb.SetTenantLimitsRequest, context: Any) -> pb.SetTenantLimitsResponse:
        """Replace a tenant's own limits, its own budget, or both."""
        name = _name_in(request)
        limits, budget = _limits_in(request.limits), _budget_in(request.budget)
        async with self._database.begin() as tx:
            if request.HasField("limits") or not request.HasField("budget"):
                await tenants.put_limits(tx, name, limits)
            if request.HasField("budget"):
                await spending.put_budget(tx, name, budget)
            own = await tenants.limits_of(tx, name)
            budget, used = await spending.by_name(tx, name)
        return pb.SetTenantLimitsResponse(
            own=_shown(own), effective=self._effective(own), budget=_budget_shown(budget), spent_today=_spent(used)
        )

    def _effective(self, own: Limits) -> pb.TenantLimits:
        allowed = self._allowance.of(own)
        return _shown(
            Limits(
                submits_per_second=allowed.submits_per_second,
                open_jobs=allowed.open_jobs,
                running_jobs=allowed.running_jobs,
                streams=allowed.streams,
                asset_bytes=allowed.asset_bytes,
            )
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


def _name_in(request: pb.GetTenantLimitsRequest | pb.SetTenantLimitsRequest) -> str:
    without_nul(request)
    return text_within(request.tenant, "tenant", 200, required=True)


def _limits_in(asked: pb.TenantLimits) -> Limits:
    rate = asked.submits_per_second.value
    if not (math.isfinite(rate) and 0 <= rate <= MOST_A_SECOND):
        raise InvalidRequest("limits.submits_per_second", f"is {rate:g}, must be from 0 to {MOST_A_SECOND:,}")
    for name, most in (
        *((name, MOST_AT_ONCE) for name in ("open_jobs", "running_jobs", "streams")),
        ("asset_bytes", MOST_BYTES),
    ):
        value = getattr(asked, name).value
        if value > most:
            raise InvalidRequest(f"limits.{name}", f"is {value}, must be from 0 to {most:,}")
    return Limits(
        submits_per_second=rate if asked.HasField("submits_per_second") else None,
        open_jobs=asked.open_jobs.value if asked.HasField("open_jobs") else None,
        running_jobs=asked.running_jobs.value if asked.HasField("running_jobs") else None,
        streams=asked.streams.value if asked.HasField("streams") else None,
        asset_bytes=asked.asset_bytes.value if asked.HasField("asset_bytes") else None,
    )


def _budget_in(asked: pb.TenantBudget) -> Budget:
    for name, most in (("daily_tokens", MOST_TOKENS), ("daily_cost_micros", MOST_DOLLARS * MICROS)):
        if (value := getattr(asked, name).value) > most:
            raise InvalidRequest(f"budget.{name}", f"is {value}, must be from 0 to {most:,}")
    return Budget(
        daily_tokens=asked.daily_tokens.value if asked.HasField("daily_tokens") else None,
        daily_cost_micros=asked.daily_cost_micros.value if asked.HasField("daily_cost_micros") else None,
    )


def _budget_shown(budget: Budget) -> pb.TenantBudget:
    return pb.TenantBudget(
        daily_tokens=_wrapped(UInt64Value, budget.daily_tokens),
        daily_cost_micros=_wrapped(UInt64Value, budget.daily_cost_micros),
    )


def _spent(used: Used) -> pb.TenantSpending:
    return pb.TenantSpending(tokens=used.tokens, cost_micros=used.cost_micros)


def _shown(limits: Limits) -> pb.TenantLimits:
    return pb.TenantLimits(
        submits_per_second=_wrapped(DoubleValue, limits.submits_per_second),
        open_jobs=_wrapped(UInt32Value, limits.open_jobs),
        running_jobs=_wrapped(UInt32Value, limits.running_jobs),
        streams=_wrapped(UInt32Value, limits.streams),
        asset_bytes=_wrapped(UInt64Value, limits.asset_bytes),
    )


def _wrapped(kind: Any, value: float | None) -> Any:
    return None if value is None else kind(value=value)
