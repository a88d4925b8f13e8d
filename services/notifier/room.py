"""How much may be under way at once: in all, to one host, and for one tenant. Pure counting.

A host that answers slowly fills its own room, and a tenant with many such hosts its own; the rest stays free.
"""

from collections import Counter
from dataclasses import dataclass

from imprimatur.storage.deliveries import tenant_and_host


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Posts at once: in all, to one host (and port), for one tenant."""

    total: int = 100
    per_host: int = 10
    per_tenant: int = 40


class Room:
    """Counts what is under way, by lane."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._total = 0
        self._hosts: Counter[str] = Counter()
        self._tenants: Counter[str] = Counter()

    def copy(self) -> "Room":
        """The same counts, to plan with."""
        planned = Room(self._limits)
        planned._total, planned._hosts, planned._tenants = self._total, self._hosts.copy(), self._tenants.copy()
        return planned

    @property
    def free(self) -> int:
        """Posts that may begin now, whoever they are for."""
        return self._limits.total - self._total

    def free_in(self, lane: str) -> int:
        """Posts that may begin now in this lane."""
        tenant, host = tenant_and_host(lane)
        return min(
            self.free,
            self._limits.per_host - self._hosts[host],
            self._limits.per_tenant - self._tenants[tenant],
        )

    def enter(self, lane: str, count: int = 1) -> None:
        """Posts begin."""
        tenant, host = tenant_and_host(lane)
        self._total += count
        self._hosts[host] += count
        self._tenants[tenant] += count

    def leave(self, lane: str, count: int = 1) -> None:
        """Posts ended."""
        tenant, host = tenant_and_host(lane)
        self._total -= count
        for counter, key in ((self._hosts, host), (self._tenants, tenant)):
            counter[key] -= count
            if not counter[key]:
                del counter[key]
