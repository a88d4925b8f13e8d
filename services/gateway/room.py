"""Room for what is kept in this process for its callers: so much for all, and of that a share for each tenant, so that
none keeps out the others.
"""

import uuid
from collections import Counter
from dataclasses import dataclass

from gateway.quotas import refused

#: When to come again, where there was no room.
_COME_AGAIN_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Bound:
    """How much there may be in this process, and how much of it one tenant's."""

    all: int
    of_a_tenant: int


class Room:
    """What of a bound is taken, and by whom.

    Args:
        limit: its name, of a tenant; with `all_`, of the process.
        what: that there may be so many of, as a refusal says it.
        reason: of a refusal.
    """

    def __init__(self, bound: Bound, *, limit: str, what: str, reason: str) -> None:
        self._bound = bound
        self._limit = limit
        self._what = what
        self._reason = reason
        self._taken = 0
        self._of_tenants: Counter[uuid.UUID] = Counter()

    @property
    def free(self) -> int:
        """What nobody has taken."""
        return self._bound.all - self._taken

    def left(self, tenant_id: uuid.UUID) -> int:
        """What this tenant may still take."""
        return min(self.free, self._bound.of_a_tenant - self._of_tenants[tenant_id])

    def require(self, tenant_id: uuid.UUID, number: int) -> None:
        """Refuse what is more than this tenant may still take.

        Raises:
            ResourceExhausted: it names the limit, and how much that is.
        """
        if number <= self.left(tenant_id):
            return
        limit, most, whose = self._limit, self._bound.of_a_tenant, "this tenant"
        if number > self.free:
            limit, most, whose = f"all_{self._limit}", self._bound.all, "all tenants"
        what = f"{self._what} of {whose} here"
        raise refused(limit, most, what, self._reason, wait_seconds=_COME_AGAIN_SECONDS)

    def take(self, tenant_id: uuid.UUID, number: int) -> None:
        """So much, which was there; less than nothing is given back."""
        self._taken += number
        self._of_tenants[tenant_id] += number
        if not self._of_tenants[tenant_id]:
            del self._of_tenants[tenant_id]
