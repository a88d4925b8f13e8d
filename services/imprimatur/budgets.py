"""What a tenant may spend at AI providers in a day, and whether it has. Pure; the count is `storage.spending`.

A day is one of UTC, by the database's clock. What runs when a budget is reached is finished and paid for: at most
what was under way at that moment is spent beyond it.
"""

from dataclasses import dataclass

MICROS = 1_000_000  #: millionths of a US dollar in one
#: The largest budgets that can be set; whoever wants more wants none.
MOST_TOKENS = 10**15
MOST_DOLLARS = 10**9


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that is spent in a day. None: as the reviewers' settings say; 0: no limit."""

    daily_tokens: int | None = None
    daily_cost_micros: int | None = None

    def or_else(self, default: "Budget") -> "Budget":
        """This one, and where it says nothing the other."""
        return Budget(
            daily_tokens=default.daily_tokens if self.daily_tokens is None else self.daily_tokens,
            daily_cost_micros=default.daily_cost_micros if self.daily_cost_micros is None else self.daily_cost_micros,
        )


#: What holds where nobody says anything.
NO_BUDGET = Budget(daily_tokens=0, daily_cost_micros=0)


@dataclass(frozen=True, kw_only=True)
class Used:
    """What was spent today; tokens in and out together."""

    tokens: int = 0
    cost_micros: int = 0


def shortage(budget: Budget, used: Used) -> str:
    """What of the budget is used up, for people to read; empty while there is room."""
    if budget.daily_tokens and used.tokens >= budget.daily_tokens:
        return f"the tenant's daily budget of {budget.daily_tokens:,} tokens is used up"
    if budget.daily_cost_micros and used.cost_micros >= budget.daily_cost_micros:
        return f"the tenant's daily budget of {budget.daily_cost_micros / MICROS:,.2f} US dollars is used up"
    return ""
