"""What one campaign came to, as a row of the table."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tests.faults.audit import Findings
from tests.faults.faults import Fault, Recovery
from tests.faults.load import Load


@dataclass(frozen=True, kw_only=True)
class Row:
    """Counts of findings, and seconds of recovery, rising. `struck` is how often it really hit something."""

    fault: str
    recovery: Recovery
    struck: int
    accepted: int
    unanswered: int  #: submits without an answer; each made one job or none
    lost: int
    applied_twice: int
    wrong_ends: int
    regressions: int
    ends_missed: int
    webhooks_missing: int
    innocents_charged: int
    surprises: int
    lost_unstruck: int
    recovery_seconds: tuple[float, ...]

    @classmethod
    def of(cls, fault: Fault, struck: int, load: Load, findings: Findings, seconds: Sequence[float]) -> "Row":
        """From what was found."""
        return cls(
            fault=fault.name,
            recovery=fault.recovery,
            struck=struck,
            accepted=len(load.told),
            unanswered=load.unanswered,
            recovery_seconds=tuple(round(one, 3) for one in sorted(seconds)),
            **{name: len(found) for name, found in asdict(findings).items()},
        )

    def percentile(self, share: float) -> float | None:
        """Of the recovery, the nearest rank; None when nothing was timed."""
        seconds = self.recovery_seconds
        return seconds[max(0, math.ceil(share * len(seconds)) - 1)] if seconds else None

    def keeps(self, most_p99_seconds: float | None) -> bool:
        """Whether the recovery's p99 is within what is promised; None promises nothing."""
        p99 = self.percentile(0.99)
        return most_p99_seconds is None or (p99 is not None and p99 <= most_p99_seconds)
