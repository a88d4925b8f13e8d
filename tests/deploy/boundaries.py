"""Where each alert begins: what it looks at is just over its threshold in one namespace, and just under in another.

Everything jumps at minute ten and stays, so that it is known to the minute when a rule must fire. Counters begin at
zero, which versions of Prometheus extrapolate alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploy.prometheus.rulebook import Alert

OVER, UNDER = "production", "staging"
_JUMP, _LAST = 10, 70

#: Before the jump and after it, just over and just under; None is no sample, and one number is a jump for both.
Jump = tuple[float | None, float | None, float | None] | float


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """What is just enough for an alert, and just not.

    Args:
        labels: that pick one of several rules of that name.
        told: labels of the alert beside those of the rule and the namespace.
        series: what each process exports, without its namespace.
        held_minutes: how long it must last.
    """

    alert: str
    series: Mapping[str, Jump]
    labels: Mapping[str, str] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)
    held_minutes: int = 0

    def is_of(self, alert: Alert) -> bool:
        """Whether it is about this rule."""
        return alert.name == self.alert and self.labels.items() <= alert.labels.items()

    def test(self, alert: Alert, names: Sequence[str]) -> dict[str, Any]:
        """promtool's test: a minute before `for` is over each of these rules is silent, and then fires in one place."""
        due = _JUMP + self.held_minutes
        told = {label: _placed(label, value, OVER) for label, value in self.told.items()}
        labels = {**alert.labels, **told, "namespace": OVER}
        return {
            "name": f"{alert.name} at its boundary",
            "interval": "1m",
            "input_series": [*self._fed()],
            "alert_rule_test": [
                {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": [{"exp_labels": labels}] * fires}
                for name in names
                for minute, fires in ((due - 1, 0), (due, 1))
            ],
        }

    def _fed(self) -> Iterator[dict[str, str]]:
        for series, jump in self.series.items():
            before, over, under = jump if isinstance(jump, tuple) else (0, jump, jump)
            for namespace, after in ((OVER, over), (UNDER, under)):
                name, _, rest = series.partition("{")
                own = rest.replace('instance="', f'instance="{_placed("instance", "", namespace)}')
                yield {
                    "series": f'{name}{{namespace="{namespace}", {own}',
                    "values": f"{_held(before, _JUMP)} {_held(after, _LAST)}",
                }


def _placed(label: str, value: str, namespace: str) -> str:
    return f"{namespace}-{value}" if label == "instance" else value


def _held(value: float | None, times: int) -> str:
    return f"stale _x{times - 1}" if value is None else f"{value}x{times - 1}"


def _build(service: str) -> str:
    return f'imprimatur_build_info{{job="{service}", instance="{service}", service="{service}", version="1"}}'


def _missing(service: str) -> Boundary:
    there = dict.fromkeys(map(_build, {"gateway", "reviewer", "notifier"} - {service}), (1, 1, 1))
    return Boundary(
        alert="ImprimaturServiceMissing",
        held_minutes=3,
        labels={"service": service},
        series={**there, _build(service): (1, None, 1)},
    )


def _budget(
    alert: str, slo: str, severity: str, long: str, short: str, burn: float, errors: int, held: int
) -> Boundary:
    return Boundary(
        alert=alert,
        held_minutes=held,
        labels={"severity": severity},
        told={"slo": slo},
        series={
            f'imprimatur:budget_burn:rate{long}{{slo="{slo}"}}': (0, burn * 1.1, burn * 0.9),
            f'imprimatur:budget_burn:rate{short}{{slo="{slo}"}}': (0, burn * 1.1, burn * 1.1),
            f'imprimatur:budget_errors:increase{long}{{slo="{slo}"}}': (0, errors, errors),
        },
    )


_ERRORS = 'imprimatur_attempt_errors_total{instance="r", type="creative_review", error_code="provider_unreachable"}'
_ATTEMPTS = 'imprimatur_attempt_duration_seconds_count{instance="r", type="creative_review", outcome="failed"}'
_LAG = "imprimatur_webhook_lag_seconds"
_BUCKETS = tuple(f'{_LAG}_bucket{{instance="n", le="{end}"}}' for end in ("30.0", "60.0", "120.0", "+Inf"))
_LAGS = f'{_LAG}_count{{instance="n"}}'
_DELIVERED, _FAILED = (
    f'imprimatur_webhook_attempts_total{{instance="n", outcome="{one}"}}' for one in ("delivered", "failed")
)

BOUNDARIES = (
    *(
        _budget(alert, slo, *pair)
        for alert, slo in (
            ("ImprimaturSubmitErrors", "submit"),
            ("ImprimaturSlowStarts", "start"),
            ("ImprimaturReviewsFailing", "review"),
        )
        for pair in (("critical", "1h", "5m", 14.4, 5, 2), ("warning", "3d", "6h", 1.0, 10, 15))
    ),
    Boundary(
        alert="ImprimaturJobsNotStarting",
        held_minutes=2,
        labels={"severity": "critical"},
        told={"priority": "normal"},
        series={'imprimatur_oldest_due_job_age_seconds{instance="g", priority="normal"}': (0, 310, 290)},
    ),
    Boundary(
        alert="ImprimaturJobsNotStarting",
        held_minutes=5,
        labels={"severity": "warning"},
        told={"priority": "low"},
        series={'imprimatur_oldest_due_job_age_seconds{instance="g", priority="low"}': (0, 3700, 3500)},
    ),
    Boundary(
        alert="ImprimaturWebhooksNotTold",
        held_minutes=5,
        series={'imprimatur_webhook_events_pending{instance="n"}': (None, 11, 9)},
    ),
    Boundary(  # one in twenty after 70 s, or after 58
        alert="ImprimaturWebhookLag",
        held_minutes=5,
        series={
            **dict(zip(_BUCKETS, (0.0, (0, 94, 100), 100.0, 100.0), strict=True)),
            _LAGS: 100,
        },
    ),
    Boundary(
        alert="ImprimaturWebhookLag",
        held_minutes=5,
        series={**dict(zip(_BUCKETS, (0.0, 0.0, 100.0, 100.0), strict=True)), _LAGS: (0, 10, 9)},
    ),
    Boundary(
        alert="ImprimaturWebhooksUnsigned", series={'imprimatur_webhook_unsigned_total{instance="n"}': (0, 3, 2.9)}
    ),
    Boundary(
        alert="ImprimaturWebhooksUntried",
        held_minutes=5,
        series={'imprimatur_webhook_oldest_untried_age_seconds{instance="n"}': (0, 910, 890)},
    ),
    Boundary(
        alert="ImprimaturHumanQueueAgeing",
        held_minutes=10,
        series={'imprimatur_oldest_pending_review_age_seconds{instance="g"}': (0, 86500, 86300)},
    ),
    *map(_missing, ("gateway", "reviewer", "notifier")),
    Boundary(
        alert="ImprimaturTargetDown",
        held_minutes=5,
        told={"job": "gateway", "instance": "g"},
        series={
            'up{job="gateway", instance="g"}': (1, 0, 1),
            _build("gateway").replace('instance="gateway"', 'instance="g"'): (1, None, 1),
        },
    ),
    Boundary(
        alert="ImprimaturNoConsumers",
        held_minutes=2,
        labels={"service": "reviewer"},
        series={
            'imprimatur_worker_slots{job="r", instance="r"}': (1, 1, 1),
            'imprimatur_broker_consuming{job="r", instance="r", service="reviewer"}': (1, 0, 1),
        },
    ),
    Boundary(
        alert="ImprimaturNoConsumers",
        held_minutes=5,
        labels={"service": "notifier"},
        series={'imprimatur_broker_consuming{job="n", instance="n", service="notifier"}': (1, 0, 1)},
    ),
    Boundary(
        alert="ImprimaturCapacityReached",
        held_minutes=15,
        series={
            'imprimatur_worker_slots_in_use{instance="r"}': (None, 92, 88),
            'imprimatur_worker_slots{instance="r"}': (None, 100, 100),
        },
    ),
    Boundary(
        alert="ImprimaturAttemptsFailing",
        held_minutes=5,
        labels={"severity": "warning"},
        series={_ERRORS: (0, 27, 23), _ATTEMPTS: 100},
    ),
    Boundary(
        alert="ImprimaturAttemptsFailing",
        held_minutes=5,
        labels={"severity": "warning"},
        series={_ERRORS: (0, 10, 9), _ATTEMPTS: 12},
    ),
    Boundary(
        alert="ImprimaturAttemptsFailing",
        held_minutes=5,
        labels={"severity": "critical"},
        series={_ERRORS: (0, 92, 88), _ATTEMPTS: 100},
    ),
    Boundary(
        alert="ImprimaturAttemptsFailing",
        held_minutes=5,
        labels={"severity": "critical"},
        series={_ERRORS: (0, 20, 19), _ATTEMPTS: (0, 20, 19)},
    ),
    Boundary(
        alert="ImprimaturProviderAway",
        held_minutes=10,
        told={"provider": "openai"},
        series={'imprimatur_provider_circuit_state{instance="r", provider="openai", circuit="open"}': (0, 1, 0)},
    ),
    Boundary(alert="ImprimaturWorkersLost", series={'imprimatur_leases_lost_total{instance="g"}': (0, 5, 4.5)}),
    Boundary(alert="ImprimaturSuspectJobs", series={'imprimatur_attempts_apart_total{instance="r"}': (0, 1, 0)}),
    Boundary(
        alert="ImprimaturInternalErrors",
        told={"rpc": "GetJob"},
        series={'imprimatur_rpc_requests_total{instance="g", rpc="GetJob", code="INTERNAL"}': (0, 3, 2.9)},
    ),
    Boundary(
        alert="ImprimaturWebhooksFailing", held_minutes=10, series={_FAILED: (0, 52, 48), _DELIVERED: (0, 48, 52)}
    ),
    Boundary(alert="ImprimaturWebhooksFailing", held_minutes=10, series={_FAILED: (0, 20, 19), _DELIVERED: 1}),
    Boundary(
        alert="ImprimaturWebhooksAbandoned",
        series={'imprimatur_webhook_deliveries_abandoned_total{instance="n"}': (0, 10, 9)},
    ),
    Boundary(  # a tenth of 300 s
        alert="ImprimaturDatabaseAway",
        held_minutes=2,
        series={'imprimatur_background_failures_total{instance="g", loop="outbox-poller"}': (0, 31, 29)},
    ),
    Boundary(
        alert="ImprimaturGaugesMissing",
        held_minutes=5,
        series={
            _build("gateway"): (1, 1, 1),
            'imprimatur_oldest_due_job_age_seconds{instance="gateway", priority="high"}': (0, None, 0),
        },
    ),
    Boundary(
        alert="ImprimaturOutboxGrowing",
        held_minutes=5,
        series={'imprimatur_outbox_messages{instance="g"}': (0, 210, 190)},
    ),
    Boundary(
        alert="ImprimaturBrokerAway",
        held_minutes=2,
        told={"job": "g", "instance": "g"},
        series={'imprimatur_broker_connected{job="g", instance="g"}': (1, 0, 1)},
    ),
    *(
        Boundary(
            alert="ImprimaturBrokerAlarm",
            held_minutes=1,
            told={"instance": "b"},
            series={_build("gateway"): (1, 1, 1), f'{alarm}{{instance="b"}}': (0, 1, 0)},
        )
        for alarm in ("rabbitmq_alarms_memory_used_watermark", "rabbitmq_alarms_free_disk_space_watermark")
    ),
    Boundary(
        alert="ImprimaturMessagesSetAside",
        told={"queue": "review.high"},
        series={'imprimatur_broker_messages_set_aside_total{instance="r", queue="review.high"}': (0, 1, 0)},
    ),
    Boundary(
        alert="ImprimaturDatabasePoolExhausted",
        held_minutes=5,
        told={"job": "g", "instance": "g"},
        series={
            'imprimatur_database_connections_in_use{job="g", instance="g"}': (None, 9.2, 8.8),
            'imprimatur_database_pool_size{job="g", instance="g"}': (None, 10, 10),
        },
    ),
    Boundary(
        alert="ImprimaturBackgroundFailing",
        held_minutes=5,
        told={"loop": "dispatcher"},
        series={'imprimatur_background_failures_total{instance="g", loop="dispatcher"}': (0, 30, 29)},
    ),
    Boundary(  # time begins at zero: what lies so far back succeeded before all
        alert="ImprimaturCleanUpStalled",
        held_minutes=60,
        series={'imprimatur_cleanup_last_success_timestamp_seconds{instance="g"}': (0, 599 - 86400, 4200 - 86400)},
    ),
    Boundary(
        alert="ImprimaturGatewaysFull",
        held_minutes=5,
        series={'imprimatur_limit_refusals_total{instance="g", limit="all_streams"}': (0, 20, 19)},
    ),
)
