"""Who calls, and what they may do: API keys, roles, and the user that a key may be bound to.

A key of role submitter or admin that is bound to a user sees and touches only that user's jobs, and so decides none:
it would approve what was submitted with it. A reviewer's binding says who decides; the human queue and what leads to it
stay visible to the whole of the tenant's reviewers.
"""

import time
import uuid
from collections.abc import Collection
from contextvars import ContextVar
from dataclasses import dataclass

from gateway.reading import SharedReads
from imprimatur.errors import PermissionDenied, Unauthenticated, Unavailable
from imprimatur.storage import tenants
from imprimatur.storage.database import Database
from imprimatur.storage.jobs import Owner
from imprimatur.storage.tenants import KEY_PREFIX, hash_of
from imprimatur.tenancy import NO_LIMITS_OF_ITS_OWN, ApiKey, Limits, Role

#: A revoked key is refused after this long at the latest.
KEY_MEMORY_SECONDS = 2.0
#: While the database is away a known key is trusted longer: little can be done with it, but the status be asked.
KEY_MEMORY_WITHOUT_DATABASE_SECONDS = 300.0
_MEMORY_SIZE = 10_000

_READING = {
    "GetJob",
    "ListJobs",
    "WatchJob",
    "WatchJobs",
    "ListJobEvents",
    "GetSystemStatus",
    "GetStats",
}
_OF_ALL_USERS = {"WebhookService", "AdminService", "PolicyService"}
#: An image may be named by any user's jobs, and what a user submitted is for others to decide.
_OF_OTHERS = {"DeleteAsset", "ClaimReview", "ClaimNextReview", "RenewReview", "ReleaseReview", "DecideReview"}
#: For those who run the system, and nobody else.
_OPERATING = {"GetTenantLimits", "SetTenantLimits"}
#: Who names images has them already; who decides must look at them.
_OF_ASSETS = {Role.SUBMITTER: {"UploadAsset", "GetAsset"}, Role.REVIEWER: {"GetAsset", "DownloadAsset"}}
#: Who decides may know by what the AI does.
_ABOUT_POLICIES = {"GetPolicy", "ListPolicyVersions", "ListPolicyActivations", "DiffPolicyVersions", "PreviewPolicy"}
#: What a reviewer may do to jobs: they are the ones before whom it piles up.
_REVIEWING = {"ReviewJobsAgain"}


@dataclass(frozen=True, kw_only=True)
class Caller:
    """The holder of a valid key."""

    tenant_id: uuid.UUID
    tenant_name: str
    role: Role
    user_id: str  #: empty: the key is not bound to a user
    key_name: str
    key_id: uuid.UUID | None = None
    limits: Limits = NO_LIMITS_OF_ITS_OWN  #: the tenant's own

    @property
    def owner(self) -> Owner:
        """Whose jobs this caller may see and touch."""
        bound = "" if self.role is Role.REVIEWER else self.user_id
        return Owner(tenant_id=self.tenant_id, user_id=bound)


_caller: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
    """Who made the call that is being served."""
    return _caller.get()


def serve_as(who: Caller) -> None:
    """From here on, the call being served is `who`'s."""
    _caller.set(who)


def may(role: Role, method: str, *, bound: bool) -> bool:
    """Whether a key may call "/imprimatur.v1.Service/Method".

    Args:
        bound: the key is bound to a user; webhook endpoints hear of every user's jobs, and administration and the
            policy are of all of them, so these are not for an admin's; nor is to decide, on that user's own jobs.
    """
    service, _, name = method.rpartition("/")
    service = service.rpartition(".")[2]
    if role is Role.OPERATOR or name in _OPERATING:
        return role is Role.OPERATOR and name in _OPERATING
    if role is Role.ADMIN:
        return not (bound and (service in _OF_ALL_USERS or name in _OF_OTHERS))
    if service == "AssetService":
        return name in _OF_ASSETS[role]
    if service == "PolicyService":
        return role is Role.REVIEWER and name in _ABOUT_POLICIES
    if service == "JobService":
        return role is Role.SUBMITTER or name in _READING or name in _REVIEWING
    return service == "ReviewService" and role is Role.REVIEWER


class Doorkeeper:
    """Turns the authorization header of a call into its Caller."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[bytes, tuple[float, ApiKey]] = {}
        self._fresh = SharedReads(self._read)

    async def admit(self, authorization: str | None, method: str) -> Caller:
        """Check key and role.

        Raises:
            Unauthenticated: no key, or not a valid one.
            PermissionDenied: the key's role may not call this method.
        """
        key = await self._find(_bearer(authorization))
        if not may(key.role, method, bound=bool(key.user_id)):
            name = method.rpartition("/")[2]
            bound = " that is bound to a user" if key.user_id else ""
            raise PermissionDenied(f"a key with the role {key.role}{bound} may not call {name}", role=key.role)
        return Caller(
            tenant_id=key.tenant_id,
            tenant_name=key.tenant_name,
            role=key.role,
            user_id=key.user_id,
            key_name=key.name,
            key_id=key.id,
            limits=key.limits,
        )

    async def stop(self) -> None:
        """End what is being read."""
        await self._fresh.stop()

    async def _find(self, secret: str) -> ApiKey:
        now, secret_hash = time.monotonic(), hash_of(secret)
        found_at, key = self._known.get(secret_hash, (0.0, None))
        if key is not None and now - found_at < KEY_MEMORY_SECONDS:
            return key
        try:
            fresh = (await self._fresh.of([secret_hash])).get(secret_hash)
        except Unavailable:
            if key is not None and now - found_at < KEY_MEMORY_WITHOUT_DATABASE_SECONDS:
                return key
            raise
        if fresh is None:
            self._known.pop(secret_hash, None)
            raise Unauthenticated("the API key is unknown or was revoked")
        if len(self._known) >= _MEMORY_SIZE:
            self._known.clear()
        self._known[secret_hash] = (now, fresh)
        return fresh

    async def _read(self, hashes: Collection[bytes]) -> dict[bytes, ApiKey]:
        async with self._database.read() as reader:
            return await tenants.find_keys(reader, hashes)


def _bearer(authorization: str | None) -> str:
    scheme, _, secret = (authorization or "").partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret.startswith(KEY_PREFIX) or len(secret) > 200:
        raise Unauthenticated(
            f"send the header `authorization: Bearer {KEY_PREFIX}…` with an API key", reason="MISSING_API_KEY"
        )
    return secret
