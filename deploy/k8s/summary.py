"""Writes what the production overlay runs into docs/deployment/kubernetes.md, as a table; with --check, only compares.

Made from deploy/k8s/rendered/, so it needs no kustomize.
"""

import sys
import textwrap
from collections import Counter

from deploy.k8s.rendering import Manifest, rendered
from docs.generated import REPOSITORY, placed, write_or_compare

PAGE = REPOSITORY / "docs" / "deployment" / "kubernetes.md"
_BEGIN, _END = "<!-- summary -->\n", "<!-- /summary -->"
_HEAD = """\
| | pods | processor | memory | starts, lives, is ready by | time to leave |
|---|---|---|---|---|---|
"""


def table(manifests: list[Manifest]) -> str:
    """Workloads with their sizes, then all objects counted by kind."""
    rows = [_row(one, manifests) for one in manifests if one["kind"] in ("Deployment", "Job")]
    rows += [_store(one) for one in manifests if one["kind"] in ("Cluster", "RabbitmqCluster")]
    kinds = Counter(one["kind"] for one in manifests)
    counted = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    told = textwrap.fill(f"{len(manifests)} objects, beside rules and dashboards: {counted}.", 118)
    return f"{_HEAD}{''.join(rows)}\n{told}\n"


def _row(workload: Manifest, manifests: list[Manifest]) -> str:
    pod = workload["spec"]["template"]["spec"]
    [container] = pod["containers"]
    probes = [
        _asks(container[f"{kind}Probe"]) for kind in ("startup", "liveness", "readiness") if f"{kind}Probe" in container
    ]
    grace = f"{pod['terminationGracePeriodSeconds']} s" if "terminationGracePeriodSeconds" in pod else ""
    return _line(workload, _pods(workload, manifests), container["resources"], ", ".join(probes), grace)


def _store(cluster: Manifest) -> str:
    spec = cluster["spec"]
    return _line(cluster, str(spec.get("instances") or spec["replicas"]), spec["resources"], "its operator", "")


def _line(one: Manifest, pods: str, resources: Manifest, probes: str, grace: str) -> str:
    sizes = (f"{resources['requests'][what]} to {resources['limits'][what]}" for what in ("cpu", "memory"))
    name = f"{one['metadata']['name']} ({one['kind']})"
    return f"| {' | '.join((name, pods, *sizes, probes, grace))} |\n"


def _pods(workload: Manifest, manifests: list[Manifest]) -> str:
    """How many there are, or between which numbers an autoscaler keeps them."""
    for one in manifests:
        spec = one.get("spec", {})
        if spec.get("scaleTargetRef", {}).get("name") == workload["metadata"]["name"]:
            least = spec.get("minReplicas") or spec["minReplicaCount"]
            return f"{least} to {spec.get('maxReplicas') or spec['maxReplicaCount']}"
    return str(workload["spec"].get("replicas", 1))


def _asks(probe: Manifest) -> str:
    return str(probe["httpGet"]["path"]) if "httpGet" in probe else "gRPC"


def page(text: str, manifests: list[Manifest]) -> str:
    """The page with a new table in it."""
    return placed(table(manifests), text, begin=_BEGIN, end=_END)


def main() -> int:
    """Write the page, or say that it is not current."""
    return write_or_compare({PAGE: page(PAGE.read_text(encoding="utf-8"), rendered("production"))})


if __name__ == "__main__":
    sys.exit(main())
