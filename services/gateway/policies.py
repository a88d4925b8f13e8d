"""PolicyService: versions of the tenant's policy, which one is live, and what another would do."""

import json
import re
from typing import Any

from gateway.access import Caller, caller
from gateway.hindsight import preview_policy, redecide_pending
from gateway.paging import foreign_token, position_of, token_of
from gateway.validation import page_size_within, text_within, version_within, without_nul
from imprimatur import hindsight, metrics
from imprimatur.errors import InvalidRequest
from imprimatur.storage import policies
from imprimatur.storage.audit import Actor
from imprimatur.storage.database import Database
from imprimatur.storage.policies import OPERATOR, Activation, Version
from imprimatur.v1 import policy_service_pb2 as pb
from imprimatur.v1.policy_service_pb2_grpc import PolicyServiceServicer
from imprimatur.wire.creatives import timestamp
from imprimatur.wire.policies import policy_from_wire, policy_to_wire

#: What page tokens are of.
_VERSIONS, _ACTIVATIONS = "versions", "activations"
_NUMBER = re.compile(r"[0-9]{1,9}")


class Policies(PolicyServiceServicer):
    """The service for those who say what the AI may decide."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- versions ----------------------------------------------------------------------------------------

    async def CreatePolicyVersion(
        self, request: pb.CreatePolicyVersionRequest, context: Any
    ) -> pb.CreatePolicyVersionResponse:
        """Add a version."""
        who = caller()
        without_nul(request)
        if not request.HasField("policy"):
            raise InvalidRequest("policy", "is required", reason="FIELD_REQUIRED")
        try:
            policy = policy_from_wire(request.policy)
        except InvalidRequest as flaw:
            raise flaw.within("policy.") from None
        async with self._database.begin() as tx:
            number = await policies.create(
                tx,
                who.tenant_id,
                policy,
                by=_author(request.author, who),
                note=_note(request.note),
                based_on=version_within(request.based_on_version, "based_on_version"),
                live_at_once=request.activate,
            )
            made = await policies.find(tx, who.tenant_id, number)
        if request.activate:
            metrics.policy_activations.labels(policy.mode).inc()
        return pb.CreatePolicyVersionResponse(version=_shown(made))

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Any) -> pb.GetPolicyResponse:
        """One version."""
        wanted = version_within(request.version, "version")
        async with self._database.read() as reader:
            found = await policies.find(reader, caller().tenant_id, wanted)
        return pb.GetPolicyResponse(version=_shown(found))

    async def ListPolicyVersions(
        self, request: pb.ListPolicyVersionsRequest, context: Any
    ) -> pb.ListPolicyVersionsResponse:
        """A page of the versions, newest first."""
        size = page_size_within(request.page_size, 20, 100)
        before = _number(request.page_token, _VERSIONS)
        async with self._database.read() as reader:
            found = await policies.newest(reader, caller().tenant_id, before=before, limit=size + 1)
        more = len(found) > size
        return pb.ListPolicyVersionsResponse(
            versions=[_shown(version) for version in found[:size]],
            next_page_token=token_of([_VERSIONS, str(found[size - 1].number)]) if more else "",
        )

    async def DiffPolicyVersions(
        self, request: pb.DiffPolicyVersionsRequest, context: Any
    ) -> pb.DiffPolicyVersionsResponse:
        """In what two versions differ."""
        numbers = [version_within(getattr(request, name), name) for name in ("from_version", "to_version")]
        async with self._database.read() as reader:
            before, after = [await policies.find(reader, caller().tenant_id, number) for number in numbers]
        return pb.DiffPolicyVersionsResponse(
            from_version=before.number,
            to_version=after.number,
            changes=[
                pb.PolicyChange(field=one.field, before=_json(one.before), after=_json(one.after))
                for one in hindsight.changes(before.policy, after.policy)
            ],
        )

    # --- which is live -----------------------------------------------------------------------------------

    async def ActivatePolicyVersion(
        self, request: pb.ActivatePolicyVersionRequest, context: Any
    ) -> pb.ActivatePolicyVersionResponse:
        """Make one the live one."""
        who = caller()
        without_nul(request)
        number = version_within(request.version, "version")
        if number is None:
            raise InvalidRequest("version", "is required", reason="FIELD_REQUIRED")
        async with self._database.begin() as tx:
            activated = await policies.activate(
                tx,
                who.tenant_id,
                number,
                by=_author(request.author, who),
                note=_note(request.note),
                expected=version_within(request.live_version, "live_version"),
            )
            live = await policies.find(tx, who.tenant_id, number)
        if activated:
            metrics.policy_activations.labels(live.policy.mode).inc()
        return pb.ActivatePolicyVersionResponse(version=_shown(live))

    async def ListPolicyActivations(
        self, request: pb.ListPolicyActivationsRequest, context: Any
    ) -> pb.ListPolicyActivationsResponse:
        """A page of the record, newest first."""
        size = page_size_within(request.page_size, 50, 500)
        before = _number(request.page_token, _ACTIVATIONS)
        async with self._database.read() as reader:
            found = await policies.activations(reader, caller().tenant_id, before=before, limit=size + 1)
        more = len(found) > size
        return pb.ListPolicyActivationsResponse(
            activations=[_activation(one) for one in found[:size]],
            next_page_token=token_of([_ACTIVATIONS, str(found[size - 1].number)]) if more else "",
        )

    # --- what a policy makes of what was reviewed --------------------------------------------------------

    async def PreviewPolicy(self, request: pb.PreviewPolicyRequest, context: Any) -> pb.PreviewPolicyResponse:
        """What a policy would have decided."""
        without_nul(request)
        return await preview_policy(self._database, caller(), request)

    async def RedecidePending(self, request: pb.RedecidePendingRequest, context: Any) -> pb.RedecidePendingResponse:
        """Decide what waits for a person by the live policy."""
        return await redecide_pending(self._database, caller(), request)


def _author(named: str, who: Caller) -> Actor:
    """Who does it: whom the request names, else the key; and with which key, whoever is named."""
    person = text_within(named, "author", 200) or who.key_name
    if person.strip().casefold() == OPERATOR.person:
        raise InvalidRequest("author", "'operator' is who acts at the database: name who does it")
    return Actor(person=person, key_id=who.key_id, key_name=who.key_name, known=bool(named))


def _note(note: str) -> str:
    return text_within(note, "note", 1000)


def _number(token: str, of_list: str) -> int | None:
    parts = position_of(token, 2)
    if parts is None:
        return None
    if parts[0] != of_list or not _NUMBER.fullmatch(parts[1]):
        raise foreign_token()
    return int(parts[1])


def _json(value: object) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _shown(version: Version) -> pb.PolicyVersion:
    return pb.PolicyVersion(
        version=version.number,
        policy=policy_to_wire(version.policy),
        create_time=timestamp(version.created_at),
        created_by=version.created_by.person,
        note=version.note,
        key_id=_key_id(version.created_by),
        key_name=version.created_by.key_name,
        live=version.live,
        last_activation=_activation(version.activated) if version.activated is not None else None,
    )


def _activation(activation: Activation) -> pb.PolicyActivation:
    return pb.PolicyActivation(
        number=activation.number,
        from_version=activation.from_version or 0,
        to_version=activation.to_version,
        time=timestamp(activation.at),
        activated_by=activation.by.person,
        note=activation.note,
        key_id=_key_id(activation.by),
        key_name=activation.by.key_name,
    )


def _key_id(by: Actor) -> str:
    return str(by.key_id) if by.key_id is not None else ""
