"""The policy as a client handles it: `client.policies`."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING

from imprimatur.client.calls import Calls
from imprimatur.client.times import timestamp
from imprimatur.v1 import policy_service_pb2 as pb
from imprimatur.v1.creative_pb2 import Decision, PolicyTrigger

if TYPE_CHECKING:  # stubs of calls exist for the type checker only
    from imprimatur.v1.policy_service_pb2_grpc import PolicyServiceAsyncStub


class Policies:
    """What the AI may decide for the tenant: versions, which one is live, and what another would do.

    Every method raises ClientError as those of the client do. For admins; reviewers may look.
    """

    def __init__(self, calls: Calls, stub: "PolicyServiceAsyncStub") -> None:
        self._calls = calls
        self._stub = stub

    async def get(self, version: int = 0) -> pb.PolicyVersion:
        """One version; 0: the live one."""
        request = pb.GetPolicyRequest(version=version)
        return (await self._calls.unary(self._stub.GetPolicy, request, repeatable=True)).version

    async def versions(self, *, page_size: int = 0) -> AsyncIterator[pb.PolicyVersion]:
        """All versions, newest first; pages are fetched as they are needed."""
        request = pb.ListPolicyVersionsRequest(page_size=page_size)
        while True:
            page = await self._calls.unary(self._stub.ListPolicyVersions, request, repeatable=True)
            for version in page.versions:
                yield version
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def activations(self, *, page_size: int = 0) -> AsyncIterator[pb.PolicyActivation]:
        """Which version was live from when on, newest first; pages are fetched as they are needed."""
        request = pb.ListPolicyActivationsRequest(page_size=page_size)
        while True:
            page = await self._calls.unary(self._stub.ListPolicyActivations, request, repeatable=True)
            for activation in page.activations:
                yield activation
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def create(
        self, policy: pb.Policy, *, note: str = "", author: str = "", based_on: int = 0, activate: bool = False
    ) -> pb.PolicyVersion:
        """Add a version, and with `activate` make it the live one. Not repeated by itself.

        `based_on`: the live version that it was made from; refused when another is live by now.
        """
        request = pb.CreatePolicyVersionRequest(
            policy=policy, note=note, author=author, based_on_version=based_on, activate=activate
        )
        return (await self._calls.unary(self._stub.CreatePolicyVersion, request, repeatable=False)).version

    async def activate(self, version: int, *, live: int = 0, note: str = "", author: str = "") -> pb.PolicyVersion:
        """Make a version the live one, at once; an older one is the way back.

        `live`: the version that is live; refused when another is by now. Such a call is not repeated by itself.
        """
        request = pb.ActivatePolicyVersionRequest(version=version, live_version=live, note=note, author=author)
        return (await self._calls.unary(self._stub.ActivatePolicyVersion, request, repeatable=not live)).version

    async def diff(self, before: int = 0, after: int = 0) -> pb.DiffPolicyVersionsResponse:
        """In which settings two versions differ; 0: the live one."""
        request = pb.DiffPolicyVersionsRequest(from_version=before, to_version=after)
        return await self._calls.unary(self._stub.DiffPolicyVersions, request, repeatable=True)

    async def preview(
        self,
        tried: int | pb.Policy,
        *,
        limit: int = 0,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> pb.PreviewPolicyResponse:
        """What a version (0: the live one), or a policy that is not kept, would have decided about the newest `limit`
        reviews of jobs created from `since` to `until`."""
        request = pb.PreviewPolicyRequest(limit=limit, created_from=timestamp(since), created_before=timestamp(until))
        if isinstance(tried, int):
            request.version = tried
        else:
            request.policy.CopyFrom(tried)
        return await self._calls.unary(self._stub.PreviewPolicy, request, repeatable=True)

    async def redecide(self, *, dry_run: bool = False, live: int = 0) -> pb.RedecidePendingResponse:
        """Decide by the live policy what waits for a person, from what the engine found, in as many calls as it takes;
        with `dry_run` only say what would be decided.

        All of it is decided by one version: refused as soon as another is live than at the beginning (or than `live`).
        What a call did whose answer was lost is missing in the sums.
        """
        request = pb.RedecidePendingRequest(dry_run=dry_run, live_version=live)
        whole = pb.RedecidePendingResponse()
        counts: dict[tuple[Decision.ValueType, PolicyTrigger.ValueType], int] = {}
        while True:
            answer = await self._calls.unary(self._stub.RedecidePending, request, repeatable=True)
            for one in answer.counts:
                key = (one.decision, one.policy_triggered)
                counts[key] = counts.get(key, 0) + one.count
            whole.held += answer.held
            whole.without_evidence += answer.without_evidence
            whole.by_another_model += answer.by_another_model
            whole.redecided.extend(answer.redecided)
            whole.policy_version = request.live_version = answer.policy_version
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
        whole.counts.extend(
            pb.RedecisionCount(decision=decision, policy_triggered=trigger, count=count)
            for (decision, trigger), count in sorted(counts.items())
        )
        return whole
