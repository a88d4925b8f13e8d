"""Imprimatur's end-to-end row and nothing else, in half a minute: `python -m benchmarks.ours_alone [IN_FLIGHT]`"""

import sys
import time

from benchmarks.figures import percentile
from benchmarks.rounds import begin, calm, round_of
from benchmarks.servers import servers
from benchmarks.systems.ours import Ours

_SECONDS = 3.5


def main() -> None:
    """Three rounds, each of about as many jobs as end in a few seconds."""
    at_once = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    began = time.monotonic()
    with servers() as under:
        system = Ours(under)
        begin(system)
        system.fleet.thaw()
        number = 60
        for _ in range(3):
            seen = round_of(system, number, in_flight=at_once)
            print(
                f"{at_once} in flight, {number} jobs: {seen.submits_per_second:.0f} submits/s, "
                f"{seen.jobs_per_second:.0f} jobs/s end to end; submit p50 {percentile(seen.latencies, 0.5) * 1e3:.1f} "
                f"p99 {percentile(seen.latencies, 0.99) * 1e3:.1f} ms; CPU ms/job {seen.cpu_ms_per_job} "
                f"= {seen.cpu_ms:.2f}",
                flush=True,
            )
            number = max(100, int(seen.jobs_per_second * _SECONDS))
        waits = calm(system, 30, per_second=20).starts
        p50, p90 = (percentile(waits, share) * 1e3 for share in (0.5, 0.9))
        print(f"submit to start at 20/s: p50 {p50:.1f} ms, p90 {p90:.1f} ms")
        system.fleet.end()
    print(f"({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
