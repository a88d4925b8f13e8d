"""Writes the dashboards as JSON into dashboards/; with --check, only compares."""

import json

from deploy.grafana.catalogue import DASHBOARDS, FOLDER
from deploy.grafana.panels import rendered
from docs.generated import write_or_compare


def main() -> int:
    """Write each dashboard, or say which file is not current; a file of no dashboard is not current either."""
    wanted = {
        FOLDER / f"{one.name}.json": json.dumps(rendered(one), indent=1, ensure_ascii=False) + "\n"
        for one in DASHBOARDS
    }
    surplus = set(FOLDER.glob("*.json")) - set(wanted)
    return write_or_compare({**wanted, **dict.fromkeys(sorted(surplus))})


if __name__ == "__main__":
    raise SystemExit(main())
