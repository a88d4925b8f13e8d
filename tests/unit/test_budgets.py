"""Whether a day's budget is used up."""

import pytest

from imprimatur.budgets import NO_BUDGET, Budget, Used, shortage


@pytest.mark.parametrize(
    ("budget", "used", "short"),
    [
        (Budget(daily_tokens=100), Used(tokens=99), ""),
        (Budget(daily_tokens=100), Used(tokens=100), "100 tokens"),
        (Budget(daily_cost_micros=2_500_000), Used(cost_micros=2_499_999), ""),
        (Budget(daily_cost_micros=2_500_000), Used(cost_micros=2_500_000), "2.50 US dollars"),
        (Budget(daily_tokens=0, daily_cost_micros=0), Used(tokens=10**12, cost_micros=10**12), ""),
        (Budget(), Used(tokens=10**12, cost_micros=10**12), ""),
        (Budget(daily_tokens=0, daily_cost_micros=1), Used(tokens=5, cost_micros=1), "US dollars"),
    ],
)
def test_a_budget_is_used_up_from_its_end_on(budget: Budget, used: Used, short: str) -> None:
    assert short in shortage(budget, used)
    assert bool(shortage(budget, used)) is bool(short)


def test_a_tenants_own_budget_goes_before_the_settings_part_by_part() -> None:
    settings = Budget(daily_tokens=100, daily_cost_micros=200)
    assert Budget().or_else(settings) == settings
    assert Budget(daily_tokens=0).or_else(settings) == Budget(daily_tokens=0, daily_cost_micros=200)
    assert Budget(daily_cost_micros=7).or_else(settings) == Budget(daily_tokens=100, daily_cost_micros=7)
    assert Budget().or_else(NO_BUDGET) == NO_BUDGET
