"""AdminService: what an operator sets for tenants."""

import math
from typing import Any

from google.protobuf.wrappers_pb2 import DoubleValue, UInt32Value

from gateway.quotas import Allowance
from gateway.validation import text_within, without_nul
from imprimatur.errors import InvalidRequest
from imprimatur.storage import tenants
from imprimatur.storage.database import Database
from imprimatur.tenancy import MOST_A_SECOND, MOST_AT_ONCE, Limits
from imprimatur.v1 import admin_service_pb2 as pb
from imprimatur.v1.admin_service_pb2_grpc import AdminServiceServicer


class Administration(AdminServiceServicer):
    """The service for those who run the system for many tenants."""

    def __init__(self, database: Database, allowance: Allowance) -> None:
        self._database = database
        self._allowance = allowance

    async def GetTenantLimits(self, request: pb.GetTenantLimitsRequest, context: Any) -> pb.GetTenantLimitsResponse:
        """What a tenant may take."""
        name = _name_in(request)
        async with self._database.read() as reader:
            own = await tenants.limits_of(reader, name)
        return pb.GetTenantLimitsResponse(own=_shown(own), effective=self._effective(own))

    async def SetTenantLimits(self, request: pb.SetTenantLimitsRequest, context: Any) -> pb.SetTenantLimitsResponse:
        """Replace a tenant's own limits."""
        name = _name_in(request)
        own = _limits_in(request.limits)
        async with self._database.begin() as tx:
            await tenants.put_limits(tx, name, own)
        return pb.SetTenantLimitsResponse(own=_shown(own), effective=self._effective(own))

    def _effective(self, own: Limits) -> pb.TenantLimits:
        allowed = self._allowance.of(own)
        return _shown(
            Limits(submits_per_second=allowed.submits_per_second, open_jobs=allowed.open_jobs, streams=allowed.streams)
        )


def _name_in(request: pb.GetTenantLimitsRequest | pb.SetTenantLimitsRequest) -> str:
    without_nul(request)
    return text_within(request.tenant, "tenant", 200, required=True)


def _limits_in(asked: pb.TenantLimits) -> Limits:
    rate = asked.submits_per_second.value
    if not (math.isfinite(rate) and 0 <= rate <= MOST_A_SECOND):
        raise InvalidRequest("limits.submits_per_second", f"is {rate:g}, must be from 0 to {MOST_A_SECOND:,}")
    for name in ("open_jobs", "streams"):
        value = getattr(asked, name).value
        if value > MOST_AT_ONCE:
            raise InvalidRequest(f"limits.{name}", f"is {value}, must be from 0 to {MOST_AT_ONCE:,}")
    return Limits(
        submits_per_second=rate if asked.HasField("submits_per_second") else None,
        open_jobs=asked.open_jobs.value if asked.HasField("open_jobs") else None,
        streams=asked.streams.value if asked.HasField("streams") else None,
    )


def _shown(limits: Limits) -> pb.TenantLimits:
    return pb.TenantLimits(
        submits_per_second=_wrapped(DoubleValue, limits.submits_per_second),
        open_jobs=_wrapped(UInt32Value, limits.open_jobs),
        streams=_wrapped(UInt32Value, limits.streams),
    )


def _wrapped(kind: Any, value: float | None) -> Any:
    return None if value is None else kind(value=value)
