"""Writes the dashboards as JSON into dashboards/; with --check, only compares."""

import json
import sys

from deploy.grafana.catalogue import DASHBOARDS, FOLDER
from deploy.grafana.panels import rendered


def main() -> int:
    """Write each dashboard, or say which file is not current; a file of no dashboard is not current either."""
    wanted = {
        FOLDER / f"{one.name}.json": json.dumps(rendered(one), indent=1, ensure_ascii=False) + "\n"
        for one in DASHBOARDS
    }
    surplus = set(FOLDER.glob("*.json")) - set(wanted)
    if "--check" not in sys.argv:
        for path, text in wanted.items():
            path.write_text(text, encoding="utf-8")
        for path in surplus:
            path.unlink()
        return 0
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in sorted([*stale, *surplus]):
        sys.stderr.write(f"not current: {path.name}; run `make docs`\n")
    return int(bool(stale or surplus))


if __name__ == "__main__":
    raise SystemExit(main())
