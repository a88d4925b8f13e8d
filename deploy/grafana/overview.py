"""The overview: is everything well, and if not, where to look next."""

from deploy.grafana.panels import OURS, Dashboard, Number, Panel, Query, Row, Table, quantiles

_FAILED = 'policy_triggered=~"engine_error|budget_exhausted"'


def _ended(state: str) -> str:
    return f'sum(increase(imprimatur_jobs_finished_total{{{OURS}, state="{state}"}}[$__range]))'


_SUCCEEDED, _ENDED_FAILED = _ended("succeeded"), _ended("failed")
#: A job that people decide has succeeded, too.
_DECIDED = f"sum(increase(imprimatur_human_decisions_total{{{OURS}}}[$__range]))"

NOW = Row(
    title="Now",
    panels=(
        Number(
            title="Processes",
            description="How many of each service answer Prometheus.",
            unit="short",
            queries=(Query(expr=f"count by (service) (imprimatur_build_info{{{OURS}}})", legend="{{service}}"),),
            runbook="ImprimaturServiceMissing",
        ),
        Number(
            title="Jobs accepted",
            description="Over the time that is shown.",
            unit="short",
            queries=(Query(expr=f"sum(increase(imprimatur_jobs_submitted_total{{{OURS}}}[$__range]))"),),
        ),
        Number(
            title="Success rate",
            description="Of the jobs that ended, by machine or people, in the time shown; failed: not reviewable.",
            unit="percentunit",
            queries=(
                Query(
                    expr=f"({_SUCCEEDED} + {_DECIDED}) / ({_SUCCEEDED} + {_DECIDED} + {_ENDED_FAILED})",
                ),
            ),
            steps=((0.0, "red"), (0.9, "orange"), (0.99, "green")),
        ),
        Number(
            title="Decided without a failure of the engine",
            description="Share of the machine's decisions in the time shown that are not for want of the engine.",
            unit="percentunit",
            queries=(
                Query(
                    expr=f"1 - sum(increase(imprimatur_ai_decisions_total{{{OURS}, {_FAILED}}}[$__range]))"
                    f" / sum(increase(imprimatur_ai_decisions_total{{{OURS}}}[$__range]))"
                ),
            ),
            steps=((0.0, "red"), (0.9, "orange"), (0.99, "green")),
            runbook="ImprimaturReviewsFailing",
        ),
        Number(
            title="Oldest due job",
            description="How long the longest-waiting job that may start has been waiting.",
            unit="s",
            queries=(Query(expr=f"max(imprimatur_oldest_due_job_age_seconds{{{OURS}}})"),),
            steps=((60, "orange"), (300, "red")),
            runbook="ImprimaturJobsNotStarting",
        ),
        Number(
            title="Waiting for a person",
            description="Jobs that the machine may not decide.",
            unit="short",
            queries=(
                Query(
                    expr=f'sum(max by (namespace, type, priority) (imprimatur_jobs{{{OURS}, state="awaiting_review"}}))'
                ),
            ),
            runbook="ImprimaturHumanQueueAgeing",
        ),
    ),
)

ALERTS = Row(
    title="Alerts",
    panels=(
        Table(
            title="Firing now",
            description="Empty when all is well; each alert has its page among the runbooks.",
            unit="short",
            queries=(
                Query(
                    expr="max by (alertname, severity, namespace, service, instance, priority, slo)"
                    ' (ALERTS{alertname=~"Imprimatur.+", severity!="none", alertstate="firing"})'
                ),
            ),
        ),
    ),
)

OBJECTIVES = Row(
    title="Objectives",
    panels=(
        Panel(
            title="Budget burn",
            description="How fast each error budget was spent in the last hour: 1 is as may be, 14.4 wakes somebody.",
            unit="short",
            queries=(
                Query(expr='max by (slo) (imprimatur:budget_burn:rate1h{namespace=~"$namespace"})', legend="{{slo}}"),
            ),
            steps=((1, "orange"), (14.4, "red")),
            runbook="ImprimaturSubmitErrors",
        ),
        Panel(
            title="Failures against the budgets",
            description="How many submits failed, jobs started late and engines failed within a day.",
            unit="short",
            queries=(
                Query(
                    expr='sum by (slo) (imprimatur:budget_errors:increase1d{namespace=~"$namespace"})',
                    legend="{{slo}}",
                ),
            ),
        ),
    ),
)

THROUGHPUT = Row(
    title="Throughput",
    panels=(
        Panel(
            title="Accepted",
            description="Jobs accepted a second, by type and priority.",
            unit="ops",
            queries=(
                Query(
                    expr=f"sum by (type, priority) (rate(imprimatur_jobs_submitted_total{{{OURS}}}[$__rate_interval]))",
                    legend="{{type}} {{priority}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            title="Out of the machine's hands",
            description="Jobs that ended, or went to a person, a second; over time as many as are accepted.",
            unit="ops",
            queries=(
                Query(
                    expr=f"sum by (type, state) (rate(imprimatur_jobs_finished_total{{{OURS}}}[$__rate_interval]))",
                    legend="{{type}} {{state}}",
                ),
            ),
            stacked=True,
        ),
    ),
)

QUEUE = Row(
    title="Queue",
    panels=(
        Panel(
            title="Waiting to start",
            description="Queued jobs whose time has come; more reviewers would help these.",
            unit="short",
            queries=(
                Query(
                    expr="sum by (type, priority)"
                    f" (max by (namespace, type, priority) (imprimatur_due_jobs{{{OURS}}}))",
                    legend="{{type}} {{priority}}",
                ),
            ),
            stacked=True,
            runbook="ImprimaturJobsNotStarting",
        ),
        Panel(
            title="Queued, due or later",
            description="All queued jobs: those scheduled for later and those between two attempts included.",
            unit="short",
            queries=(
                Query(
                    expr="sum by (type, priority) (max by (namespace, type, priority)"
                    f' (imprimatur_jobs{{{OURS}, state="queued"}}))',
                    legend="{{type}} {{priority}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            title="Oldest due, by priority",
            description="High should be near zero always; low may wait while others are served.",
            unit="s",
            queries=(
                Query(
                    expr=f"max by (priority) (imprimatur_oldest_due_job_age_seconds{{{OURS}}})", legend="{{priority}}"
                ),
            ),
            steps=((300, "red"),),
            runbook="ImprimaturJobsNotStarting",
        ),
        Panel(
            title="Slots",
            description="Jobs that the reviewers run, and could run: when the two meet, more reviewers are needed.",
            unit="short",
            queries=(
                Query(expr=f"sum(imprimatur_worker_slots_in_use{{{OURS}}})", legend="in use"),
                Query(expr=f"sum(imprimatur_worker_slots{{{OURS}}})", legend="there are"),
            ),
            runbook="ImprimaturCapacityReached",
        ),
    ),
)

LATENCY = Row(
    title="How long it takes",
    panels=(
        Panel(
            title="Submit to start",
            description="From when a job was due to its first start.",
            unit="s",
            queries=quantiles("imprimatur_submit_to_start_seconds"),
            steps=((30, "red"),),
            runbook="ImprimaturSlowStarts",
        ),
        Panel(
            title="Submit to end",
            description="From when a job was due until the machine was done with it, retries and waiting included.",
            unit="s",
            queries=quantiles("imprimatur_submit_to_end_seconds"),
        ),
        Panel(
            title="Watch lag",
            description="From an event's arrival at a gateway until the job is handed to its watcher.",
            unit="s",
            queries=quantiles("imprimatur_watch_lag_seconds"),
        ),
    ),
)

CALLS = Row(
    title="Calls",
    panels=(
        Panel(
            title="Calls that did not end in OK",
            description="By method and code. UNAVAILABLE and INTERNAL are ours; the others are the callers' own.",
            unit="reqps",
            queries=(
                Query(
                    expr="sum by (rpc, code)"
                    f' (rate(imprimatur_rpc_requests_total{{{OURS}, code!="OK"}}[$__rate_interval]))',
                    legend="{{rpc}} {{code}}",
                ),
            ),
            runbook="ImprimaturSubmitErrors",
        ),
        Panel(
            title="Time to answer, 99 %",
            description="Of unary calls, by method.",
            unit="s",
            queries=(
                Query(
                    expr="histogram_quantile(0.99, sum by (rpc, le)"
                    f" (rate(imprimatur_rpc_duration_seconds_bucket{{{OURS}}}[$__rate_interval])))",
                    legend="{{rpc}}",
                ),
            ),
        ),
        Panel(
            title="Open streams",
            description="Watches open at all gateways.",
            unit="short",
            queries=(Query(expr=f"sum by (rpc) (imprimatur_open_streams{{{OURS}}})", legend="{{rpc}}"),),
        ),
        Panel(
            title="Refused by a limit",
            description="Jobs and streams beyond what a tenant may take, and what a gateway had no room for "
            "(all_streams, request_bytes).",
            unit="reqps",
            queries=(
                Query(
                    expr=f"sum by (limit) (rate(imprimatur_limit_refusals_total{{{OURS}}}[$__rate_interval]))",
                    legend="{{limit}}",
                ),
            ),
            runbook="ImprimaturGatewaysFull",
        ),
    ),
)

DASHBOARD = Dashboard(
    name="overview",
    title="Imprimatur: overview",
    description="Is everything well? Start here.",
    rows=(NOW, ALERTS, OBJECTIVES, QUEUE, LATENCY, THROUGHPUT, CALLS),
)
