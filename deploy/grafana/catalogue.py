"""All dashboards, and where their JSON lies."""

from pathlib import Path

from deploy.grafana import infrastructure, notifier, overview, people, reviewer

FOLDER = Path(__file__).resolve().parent / "dashboards"
DASHBOARDS = (
    overview.DASHBOARD,
    reviewer.DASHBOARD,
    notifier.DASHBOARD,
    people.DASHBOARD,
    infrastructure.DASHBOARD,
)
