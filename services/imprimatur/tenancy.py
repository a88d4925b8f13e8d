"""Tenants, and what the holder of one of their keys may do."""

import uuid
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from imprimatur.policy import Mode


class Role(StrEnum):
    """What a key may do."""

    SUBMITTER = "submitter"  #: submit, see, watch, cancel and retry jobs
    REVIEWER = "reviewer"  #: see jobs and decide what waits for a person
    ADMIN = "admin"  #: everything of its tenant, webhooks included
    OPERATOR = "operator"  #: the limits and budgets of all tenants, and nothing else


#: The largest limits that can be set; whoever wants more wants none.
MOST_A_SECOND = 1_000_000
MOST_AT_ONCE = 2_000_000_000
MOST_BYTES = 10**15


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a tenant may take, where it differs from the gateways' settings. None: as they say; 0: no limit."""

    submits_per_second: float | None = None  #: jobs, at each gateway
    open_jobs: int | None = None  #: queued or running, everywhere
    running_jobs: int | None = None  #: released or running, everywhere
    streams: int | None = None  #: open at each gateway
    asset_bytes: int | None = None  #: of uploaded images, kept


NO_LIMITS_OF_ITS_OWN = Limits()


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """One customer of the system; nothing is shared between two."""

    id: uuid.UUID
    name: str
    mode: Mode  #: of the live policy
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """What is known of a key; the key itself is not kept. `user_id` is empty unless it is bound to a user."""

    id: uuid.UUID
    tenant_id: uuid.UUID
    tenant_name: str
    name: str
    role: Role
    user_id: str
    created_at: datetime
    revoked_at: datetime | None
    limits: Limits = NO_LIMITS_OF_ITS_OWN  #: its tenant's
