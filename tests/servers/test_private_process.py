"""Processes are recognised by pid and birth, and end with whom they should."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from deploy.local import process as processes
from deploy.local.ports import free_port, is_free
from deploy.local.process import Process, spawn
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
SECONDS = PATIENCE_SECONDS


def sleeper(folder: Path, *, die_with_parent: bool = True) -> Process:
    command = ["sh", "-c", "sleep 600 & sleep 600"]
    return spawn(command, log=folder / "log", environ=os.environ, die_with_parent=die_with_parent)


def test_a_process_of_another_birth_is_not_taken_for_ours(tmp_path: Path) -> None:
    ours = sleeper(tmp_path)
    reused = Process(pid=ours.pid, birth="another boot/1")

    assert not reused.alive()
    reused.send(signal.SIGKILL)
    processes.kill(reused)

    assert ours.alive()
    processes.kill(ours)
    assert not ours.alive()


def test_suspend_and_kill_reach_the_children(tmp_path: Path) -> None:
    parent = sleeper(tmp_path)
    assert processes.wait_until(lambda: len(processes.family(parent)) == 3, SECONDS)
    family = processes.family(parent)

    processes.suspend(parent)
    assert all(member.stopped() for member in family)
    processes.resume(parent)
    assert processes.wait_until(lambda: not any(member.stopped() for member in family), SECONDS)

    processes.kill(parent)
    assert not any(member.alive() for member in family)


def test_a_server_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    started: list[Process] = []
    thread = threading.Thread(target=lambda: started.append(sleeper(tmp_path)))
    thread.start()
    thread.join()

    # The kernel would have killed it at once; a second one started now would be seen as well.
    assert processes.wait_until(lambda: len(processes.family(started[0])) == 3, SECONDS)
    assert started[0].alive()
    processes.kill(started[0])


def test_a_server_dies_with_its_killed_parent_unless_told_otherwise(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from deploy.local.process import spawn\n"
        "for dies in (True, False):\n"
        "    p = spawn(['sleep', '600'], log=Path(sys.argv[1]), environ=os.environ, die_with_parent=dies)\n"
        "    print(p.pid, p.birth, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "log")]
    told = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=SECONDS, check=False)
    lines = [line.split(maxsplit=1) for line in told.stdout.splitlines()]
    mortal, lasting = (Process(pid=int(pid), birth=birth) for pid, birth in lines)

    assert processes.wait_gone([mortal], SECONDS)
    assert lasting.alive()
    processes.kill(lasting)


def test_free_ports_are_distinct_and_free() -> None:
    ports = [free_port() for _ in range(50)]

    assert len(set(ports)) == 50
    assert all(is_free(port) for port in ports)
