"""`make panels` where there is nothing to ask."""

import subprocess
import sys
from pathlib import Path


def test_without_a_prometheus_the_panels_are_one_line_that_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.panels", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no gateway or no Prometheus runs in ")
    assert done.stderr.count("\n") == 1
