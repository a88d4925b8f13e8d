"""The notifiers: are outcomes told, how late, and who does not listen."""

from deploy.grafana.panels import OURS, Dashboard, Number, Panel, Query, Row, quantiles

NOW = Row(
    title="Now",
    panels=(
        Number(
            title="Posts delivered",
            description="Of all posts in the time shown, those that were answered with 2xx.",
            unit="percentunit",
            queries=(
                Query(
                    expr=f'sum(increase(imprimatur_webhook_attempts_total{{{OURS}, outcome="delivered"}}[$__range]))'
                    f" / sum(increase(imprimatur_webhook_attempts_total{{{OURS}}}[$__range]))"
                ),
            ),
            steps=((0.0, "red"), (0.5, "orange"), (0.95, "green")),
            runbook="ImprimaturWebhooksFailing",
        ),
        Number(
            title="Outcomes untold",
            description="Outcomes not yet made into webhooks: zero but for moments.",
            unit="short",
            queries=(Query(expr=f"sum(max by (namespace) (imprimatur_webhook_events_pending{{{OURS}}}))"),),
            steps=((10, "orange"), (1000, "red")),
            runbook="ImprimaturWebhooksNotTold",
        ),
        Number(
            title="Deliveries open",
            description="Deliveries still to be made; those that wait for another attempt are among them.",
            unit="short",
            queries=(Query(expr=f"sum(max by (namespace) (imprimatur_webhook_deliveries_pending{{{OURS}}}))"),),
            runbook="ImprimaturWebhooksFailing",
        ),
        Number(
            title="Given up",
            description="Deliveries abandoned in the time shown, each after its last attempt.",
            unit="short",
            queries=(Query(expr=f"sum(increase(imprimatur_webhook_deliveries_abandoned_total{{{OURS}}}[$__range]))"),),
            steps=((1, "orange"),),
            runbook="ImprimaturWebhooksAbandoned",
        ),
        Number(
            title="Oldest never posted",
            description="How long the longest-waiting webhook without any attempt has waited: seconds at the most.",
            unit="s",
            queries=(Query(expr=f"max(imprimatur_webhook_oldest_untried_age_seconds{{{OURS}}})"),),
            steps=((60, "orange"), (900, "red")),
            runbook="ImprimaturWebhooksUntried",
        ),
    ),
)

POSTS = Row(
    title="Posts",
    panels=(
        Panel(
            title="Posts by outcome",
            description="refused: another status than 2xx; failed: no answer; blocked: an address that is not allowed.",
            unit="ops",
            queries=(
                Query(
                    expr=f"sum by (outcome) (rate(imprimatur_webhook_attempts_total{{{OURS}}}[$__rate_interval]))",
                    legend="{{outcome}}",
                ),
            ),
            stacked=True,
            runbook="ImprimaturWebhooksFailing",
        ),
        Panel(
            title="Lag",
            description="From an outcome to the first attempt at telling it: ours alone, no receiver is in it.",
            unit="s",
            queries=quantiles("imprimatur_webhook_lag_seconds"),
            steps=((60, "red"),),
            runbook="ImprimaturWebhookLag",
        ),
        Panel(
            title="Duration of posts",
            description="How long receivers take to answer.",
            unit="s",
            queries=quantiles("imprimatur_webhook_duration_seconds"),
        ),
    ),
)

BACKLOG = Row(
    title="Backlog",
    panels=(
        Panel(
            title="What is open",
            description="Outcomes without their webhooks, and webhooks without their delivery.",
            unit="short",
            queries=(
                Query(
                    expr=f"sum(max by (namespace) (imprimatur_webhook_events_pending{{{OURS}}}))",
                    legend="outcomes untold",
                ),
                Query(
                    expr=f"sum(max by (namespace) (imprimatur_webhook_deliveries_pending{{{OURS}}}))",
                    legend="deliveries open",
                ),
            ),
            runbook="ImprimaturWebhooksNotTold",
        ),
        Panel(
            title="Outcomes received from the broker",
            description="By whether the broker delivers them again; what it does not tell of, the sweep finds.",
            unit="ops",
            queries=(
                Query(
                    expr="sum by (redelivered) (rate(imprimatur_broker_deliveries_total"
                    f'{{{OURS}, queue="notifier.events"}}[$__rate_interval]))',
                    legend="redelivered: {{redelivered}}",
                ),
            ),
        ),
        Panel(
            title="Not signed",
            description="Tries at deliveries whose secret is gone or cannot be opened; each waits for a minute then.",
            unit="short",
            queries=(
                Query(expr=f"sum(increase(imprimatur_webhook_unsigned_total{{{OURS}}}[$__range]))", legend="tries"),
            ),
            steps=((1, "red"),),
            runbook="ImprimaturWebhooksUnsigned",
        ),
        Panel(
            title="Failing passes",
            description="Of the notifiers' background loops; each is tried again.",
            unit="short",
            queries=(
                Query(
                    expr="sum by (loop)"
                    f' (increase(imprimatur_background_failures_total{{{OURS}, loop=~"webhook-.+"}}[$__range]))',
                    legend="{{loop}}",
                ),
            ),
            runbook="ImprimaturBackgroundFailing",
        ),
    ),
)

DASHBOARD = Dashboard(
    name="notifier",
    title="Imprimatur: webhooks",
    description="Posts by outcome, their lag, and what is open.",
    rows=(NOW, POSTS, BACKLOG),
)
