"""On what terms AI providers are asked. `admission` holds attempts to them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from imprimatur.budgets import NO_BUDGET, Budget
from imprimatur.job import JobType


@dataclass(frozen=True, kw_only=True)
class Terms:
    """`budget`: of tenants that have none of their own. `interval_seconds`: the least time between two calls to one
    provider for one tenant, by type of job; none where nothing is said."""

    budget: Budget = NO_BUDGET
    interval_seconds: Mapping[JobType, float] = field(default_factory=dict)


#: Ask as you like.
NO_TERMS = Terms()
