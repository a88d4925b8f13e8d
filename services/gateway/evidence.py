"""Evidence that is kept for equal creatives: what it was good for, and that it is forgotten."""

import time
import uuid
from collections.abc import Iterable

from gateway.validation import id_of, text_within, without_nul
from imprimatur.errors import InvalidRequest
from imprimatur.evidence import EngineIdentity
from imprimatur.storage import evidence
from imprimatur.storage.database import Database
from imprimatur.storage.evidence import Scope, Use
from imprimatur.v1 import admin_service_pb2 as pb
from imprimatur.v1 import creative_pb2

#: Forgotten in one transaction.
_AT_ONCE = 500
_CALL_SECONDS = 1.0
#: The longest name, version or model of an engine.
_LONGEST_NAME = 200


async def use_of(database: Database, tenant_id: uuid.UUID) -> pb.GetEvidenceStatsResponse:
    """What a tenant's evidence was good for."""
    async with database.read() as reader:
        used = await evidence.use_of(reader, tenant_id)
    return pb.GetEvidenceStatsResponse(total=_together(used), engines=[_shown(one) for one in used])


async def forget(
    database: Database, tenant_id: uuid.UUID, request: pb.ForgetEvidenceRequest, *, seconds: float = _CALL_SECONDS
) -> pb.ForgetEvidenceResponse:
    """Forget what the request names, for about so long."""
    scope = _scope(request)
    until, forgotten, more = time.monotonic() + seconds, 0, True
    while more:
        async with database.begin() as tx:
            step = await evidence.forget(tx, tenant_id, scope, limit=_AT_ONCE)
        forgotten, more = forgotten + step.number, step.more
        if time.monotonic() >= until:
            break
    return pb.ForgetEvidenceResponse(forgotten=forgotten, more=more)


def _scope(request: pb.ForgetEvidenceRequest) -> Scope:
    without_nul(request)
    match request.WhichOneof("which"):
        case "everything":
            if not request.everything:
                raise InvalidRequest("everything", "must be true: or set engine, policy_version or job_id")
            return Scope()
        case "engine":
            return Scope(
                engine=text_within(request.engine.name, "engine.name", _LONGEST_NAME, required=True),
                engine_version=text_within(request.engine.version, "engine.version", _LONGEST_NAME),
                model=text_within(request.engine.model, "engine.model", _LONGEST_NAME),
            )
        case "policy_version":
            if request.policy_version < 1:
                raise InvalidRequest("policy_version", f"is {request.policy_version}, must be from 1 to 2,147,483,647")
            return Scope(policy_version=request.policy_version)
        case "job_id":
            return Scope(job_id=id_of(request.job_id))
        case _:
            raise InvalidRequest(
                "which", "is required: set everything, engine, policy_version or job_id", reason="FIELD_REQUIRED"
            )


def _together(used: Iterable[Use]) -> pb.EvidenceUse:
    whole = Use(engine=EngineIdentity(name="", version=""), looks=0, hits=0, tokens=0, cost_micros=0)
    for one in used:
        whole = Use(
            engine=whole.engine,
            looks=whole.looks + one.looks,
            hits=whole.hits + one.hits,
            tokens=whole.tokens + one.tokens,
            cost_micros=whole.cost_micros + one.cost_micros,
        )
    shown = _shown(whole)
    shown.ClearField("engine")
    return shown


def _shown(use: Use) -> pb.EvidenceUse:
    reviews = use.hits + use.looks
    return pb.EvidenceUse(
        engine=creative_pb2.EngineIdentity(name=use.engine.name, version=use.engine.version, model=use.engine.model),
        entries=use.looks,
        hits=use.hits,
        hit_rate=use.hits / reviews if reviews else 0.0,
        tokens_saved=use.tokens,
        cost_micros_saved=use.cost_micros,
    )
