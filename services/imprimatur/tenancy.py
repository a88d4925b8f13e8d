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
    ADMIN = "admin"  #: everything, webhooks included


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
