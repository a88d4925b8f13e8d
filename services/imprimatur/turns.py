"""Whose turn it is among the priorities.

While jobs of all three wait, of twenty that start some fifteen are HIGH, four NORMAL and one LOW: what is urgent goes
first, and nothing waits for ever. A share that nobody waits for falls to the others.
"""

import math
from collections.abc import Collection, Mapping

from imprimatur.job import Priority

#: Of the starts, while jobs of every priority wait.
SHARES: Mapping[Priority, float] = {Priority.HIGH: 0.75, Priority.NORMAL: 0.20, Priority.LOW: 0.05}


def next_of(waiting: Collection[Priority], chance: float) -> Priority:
    """The priority that starts next; `chance` is drawn uniformly from [0, 1)."""
    ordered = sorted(waiting)
    left = chance * sum(SHARES[priority] for priority in ordered)
    for priority in ordered:
        left -= SHARES[priority]
        if left < 0:
            return priority
    return ordered[-1]


def first_place(priority: Priority, chance: float) -> float:
    """Where the first waiting job of a priority stands in a common queue, and each further one `1 / share` behind it.

    As a Poisson process of that rate would have it, so that the shares hold however few places are given at once.
    `chance` is drawn uniformly from [0, 1).
    """
    return -math.log1p(-chance) / SHARES[priority]
