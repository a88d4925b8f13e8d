"""`make demo` after its installation, as a process."""

import signal
import sys
from pathlib import Path

from deploy.local import process as processes
from tests.e2e.processes import START_SECONDS, Child, family
from tests.patience import PATIENCE_SECONDS

_DEMO = (sys.executable, "-m", "examples.demo")
_MOST_SECONDS = 2 * PATIENCE_SECONDS
_INTERRUPTED = 130


def test_the_demo_reaches_its_end_and_everything_that_it_promises(children: list[Child], tmp_path: Path) -> None:
    demo = _started(children, tmp_path)
    assert demo.wait(_MOST_SECONDS) == 0, demo.output
    assert "48 creatives: " in demo.output
    assert "49 outcomes, 49 webhooks verified" in demo.output
    assert "Approved by the AI though they must not be: 0." in demo.output
    assert "webhook-signature: v1," in demo.output


def test_an_interrupted_demo_leaves_no_process_and_no_folder(children: list[Child], tmp_path: Path) -> None:
    demo = _started(children, tmp_path)
    demo.until(lambda: "accepted as jobs" in demo.output, "the demo")
    members = family(demo.pid)
    assert len(members) >= 3
    demo.send(signal.SIGINT)
    assert demo.wait(START_SECONDS) == _INTERRUPTED, demo.output
    assert processes.wait_until(lambda: not [pid for pid in members if family(pid)], START_SECONDS)
    assert not list(tmp_path.glob("imprimatur-demo-*"))


def _started(children: list[Child], tmp_path: Path) -> Child:
    repository = str(Path(__file__).parents[2])
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": repository, "TMPDIR": str(tmp_path)}
    demo = Child(_DEMO, tmp_path / "demo.log", environ)
    children.append(demo)
    return demo
