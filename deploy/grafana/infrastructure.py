"""What everything stands on: outbox, broker, database, clean-up, processes."""

from deploy.grafana.panels import OURS, Dashboard, Panel, Query, Row

OUTBOX = Row(
    title="From the outbox to the broker",
    panels=(
        Panel(
            title="Outbox",
            description="Messages written and not confirmed by the broker: zero but for moments, unless it is away.",
            unit="short",
            queries=(Query(expr=f"sum(max by (namespace) (imprimatur_outbox_messages{{{OURS}}}))", legend="messages"),),
            steps=((200, "red"),),
            runbook="ImprimaturOutboxGrowing",
        ),
        Panel(
            title="Handed to the broker",
            description="failed: not confirmed, and tried again.",
            unit="ops",
            queries=(
                Query(
                    expr=f"sum by (result) (rate(imprimatur_outbox_published_total{{{OURS}}}[$__rate_interval]))",
                    legend="{{result}}",
                ),
            ),
            stacked=True,
            runbook="ImprimaturOutboxGrowing",
        ),
        Panel(
            title="Received from the broker",
            description="By queue, and whether delivered again.",
            unit="ops",
            queries=(
                Query(
                    expr="sum by (queue, redelivered)"
                    f" (rate(imprimatur_broker_deliveries_total{{{OURS}}}[$__rate_interval]))",
                    legend="{{queue}}, redelivered: {{redelivered}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            title="Set aside",
            description="Messages that this version cannot read; they lie in the queue parked.",
            unit="short",
            queries=(
                Query(
                    expr=f"sum by (queue) (increase(imprimatur_broker_messages_set_aside_total{{{OURS}}}[$__range]))",
                    legend="{{queue}}",
                ),
            ),
            runbook="ImprimaturMessagesSetAside",
        ),
    ),
)

LINES = Row(
    title="Connections and loops",
    panels=(
        Panel(
            title="Connected to the broker",
            description="1 while the connection stands, by process.",
            unit="short",
            queries=(Query(expr=f"imprimatur_broker_connected{{{OURS}}}", legend="{{job}} {{instance}}"),),
            runbook="ImprimaturBrokerAway",
        ),
        Panel(
            title="Consuming",
            description="1 while the broker has confirmed every consumer of a reviewer or notifier.",
            unit="short",
            queries=(
                Query(
                    expr=f"max by (service, instance) (imprimatur_broker_consuming{{{OURS}}})",
                    legend="{{service}} {{instance}}",
                ),
            ),
            runbook="ImprimaturNoConsumers",
        ),
        Panel(
            title="Database connections in use",
            description="Share of each process's pool; at 100 % its calls wait for each other.",
            unit="percentunit",
            queries=(
                Query(
                    expr=f"imprimatur_database_connections_in_use{{{OURS}}} / imprimatur_database_pool_size{{{OURS}}}",
                    legend="{{job}} {{instance}}",
                ),
            ),
            steps=((0.9, "red"),),
            runbook="ImprimaturDatabasePoolExhausted",
        ),
        Panel(
            title="Failing background passes",
            description="By loop; each is tried again. All loops together: the database.",
            unit="short",
            queries=(
                Query(
                    expr=f"sum by (loop) (increase(imprimatur_background_failures_total{{{OURS}}}[$__range]))",
                    legend="{{loop}}",
                ),
            ),
            runbook="ImprimaturBackgroundFailing",
        ),
    ),
)

CLEANING = Row(
    title="Clean-up of finished work",
    panels=(
        Panel(
            title="Cleaned up",
            description="Rows removed, by kind; request_ids are forgotten while their jobs stay.",
            unit="short",
            queries=(
                Query(
                    expr=f"sum by (kind) (increase(imprimatur_rows_removed_total{{{OURS}}}[$__range]))",
                    legend="{{kind}}",
                ),
            ),
            stacked=True,
            runbook="ImprimaturCleanUpStalled",
        ),
        Panel(
            title="Since the last clean-up",
            description="Since a pass last came to its end, in whatever gateway: an hour and a little at most.",
            unit="s",
            queries=(
                Query(
                    expr="time() - max by (namespace)"
                    f" (imprimatur_cleanup_last_success_timestamp_seconds{{{OURS}}} > 0)",
                    legend="{{namespace}}",
                ),
            ),
            steps=((86_400, "red"),),
            runbook="ImprimaturCleanUpStalled",
        ),
    ),
)

_EACH = "{{job}} {{instance}}"
_PROCESS = f"and on (job, instance) imprimatur_build_info{{{OURS}}}"

PROCESSES = Row(
    title="Processes",
    panels=(
        Panel(
            title="Processor",
            description="Seconds of processor time a second: 1 is a whole core. Child processes are not in it.",
            unit="short",
            queries=(
                Query(expr=f"rate(process_cpu_seconds_total{{{OURS}}}[$__rate_interval]) {_PROCESS}", legend=_EACH),
            ),
        ),
        Panel(
            title="Memory",
            description="Resident, by process; child processes are not in it.",
            unit="bytes",
            queries=(Query(expr=f"process_resident_memory_bytes{{{OURS}}} {_PROCESS}", legend=_EACH),),
        ),
        Panel(
            title="Open files",
            description="Share of what the process may open.",
            unit="percentunit",
            queries=(
                Query(
                    expr=f"process_open_fds{{{OURS}}} / process_max_fds{{{OURS}}} {_PROCESS}",
                    legend=_EACH,
                ),
            ),
            steps=((0.8, "red"),),
        ),
        Panel(
            title="Time since the start",
            description="A line that falls back to zero is a restart.",
            unit="s",
            queries=(Query(expr=f"time() - process_start_time_seconds{{{OURS}}} {_PROCESS}", legend=_EACH),),
            runbook="ImprimaturTargetDown",
        ),
    ),
)

#: Of servers: those of the chosen namespaces. Where nothing has a namespace, all that Prometheus sees.
_THEIRS = 'namespace=~"$namespace"'

RABBITMQ = Row(
    title="RabbitMQ (its plugin rabbitmq_prometheus)",
    panels=(
        Panel(
            title="Messages by queue",
            description="Ready and unacknowledged; review queues are kept short on purpose, parked should be empty.",
            unit="short",
            queries=(
                Query(
                    expr=f"sum by (namespace, queue) (rabbitmq_detailed_queue_messages{{{_THEIRS},"
                    ' queue=~"review.+|notifier.+|parked"})',
                    legend="{{queue}} {{namespace}}",
                ),
            ),
            runbook="ImprimaturMessagesSetAside",
        ),
        Panel(
            title="Consumers by queue",
            description="Each reviewer has one on each review queue, each notifier one on notifier.events.",
            unit="short",
            queries=(
                Query(
                    expr=f"sum by (namespace, queue) (rabbitmq_detailed_queue_consumers{{{_THEIRS},"
                    ' queue=~"review.+|notifier.+"})',
                    legend="{{queue}} {{namespace}}",
                ),
            ),
            runbook="ImprimaturNoConsumers",
        ),
        Panel(
            title="Memory of each node",
            description="Share of the node's limit; beyond it, publishing is blocked.",
            unit="percentunit",
            queries=(
                Query(
                    expr=f"rabbitmq_process_resident_memory_bytes{{{_THEIRS}}}"
                    f" / rabbitmq_resident_memory_limit_bytes{{{_THEIRS}}}",
                    legend="{{instance}} {{namespace}}",
                ),
            ),
            steps=((0.8, "orange"), (1, "red")),
            runbook="ImprimaturBrokerAlarm",
        ),
        Panel(
            title="Alarms",
            description="1: the node takes no messages.",
            unit="short",
            queries=(
                Query(
                    expr=f"max by (namespace, instance) (rabbitmq_alarms_memory_used_watermark{{{_THEIRS}}})",
                    legend="memory {{instance}} {{namespace}}",
                ),
                Query(
                    expr=f"max by (namespace, instance) (rabbitmq_alarms_free_disk_space_watermark{{{_THEIRS}}})",
                    legend="disk {{instance}} {{namespace}}",
                ),
            ),
            steps=((1, "red"),),
            runbook="ImprimaturBrokerAlarm",
        ),
    ),
)

#: Not what the server keeps for itself, nor what is no database's alone.
_DATABASES = f'{_THEIRS}, datname!~"|template[01]"'

POSTGRESQL = Row(
    title="PostgreSQL (postgres_exporter, or CloudNativePG's own)",
    panels=(
        Panel(
            title="Connections",
            description="By state, of all clients; many idle in transaction hold others up.",
            unit="short",
            queries=(
                Query(
                    expr=f"sum by (namespace, state) (pg_stat_activity_count{{{_THEIRS}}})"
                    f" or sum by (namespace, state) (cnpg_backends_total{{{_THEIRS}}})",
                    legend="{{state}} {{namespace}}",
                ),
            ),
            stacked=True,
            runbook="ImprimaturDatabaseAway",
        ),
        Panel(
            title="Transactions",
            description="Committed and rolled back a second, by database.",
            unit="ops",
            queries=(
                Query(
                    expr="sum by (namespace, datname)"
                    f" (rate(pg_stat_database_xact_commit{{{_DATABASES}}}[$__rate_interval]))"
                    " or sum by (namespace, datname)"
                    f" (rate(cnpg_pg_stat_database_xact_commit{{{_DATABASES}}}[$__rate_interval]))",
                    legend="{{datname}} committed {{namespace}}",
                ),
                Query(
                    expr="sum by (namespace, datname)"
                    f" (rate(pg_stat_database_xact_rollback{{{_DATABASES}}}[$__rate_interval]))"
                    " or sum by (namespace, datname)"
                    f" (rate(cnpg_pg_stat_database_xact_rollback{{{_DATABASES}}}[$__rate_interval]))",
                    legend="{{datname}} rolled back {{namespace}}",
                ),
            ),
        ),
        Panel(
            title="Size",
            description="Of each database. It stops growing when as much is cleaned up as comes in.",
            unit="bytes",
            queries=(
                Query(
                    expr=f"max by (namespace, datname) (pg_database_size_bytes{{{_DATABASES}}})"
                    f" or max by (namespace, datname) (cnpg_pg_database_size_bytes{{{_DATABASES}}})",
                    legend="{{datname}} {{namespace}}",
                ),
            ),
        ),
    ),
)

DASHBOARD = Dashboard(
    name="infrastructure",
    title="Imprimatur: infrastructure",
    description="Outbox, broker, database, clean-up, processes; RabbitMQ and PostgreSQL by their exporters if present.",
    rows=(OUTBOX, LINES, CLEANING, PROCESSES, RABBITMQ, POSTGRESQL),
)
