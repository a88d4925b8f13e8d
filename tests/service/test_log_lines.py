"""What a service process writes on standard error: one JSON object a line, whoever writes it."""

import json
import subprocess
import sys
import urllib.error
import urllib.request

import pytest


def test_whatever_a_library_reports_is_one_json_object_a_line() -> None:
    command = [sys.executable, "-m", "tests.service.noisy_service"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        port = int(service.stdout.readline())
        with pytest.raises(urllib.error.HTTPError, match="500"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)
        service.terminate()
        _, written = service.communicate(timeout=30)
    assert service.returncode == 1
    lines = [json.loads(line) for line in written.splitlines()]
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    traced = [line["event"] for line in lines if "RuntimeError: this failed\nin two lines" in line.get("exception", "")]
    assert sorted(event.split()[0] for event in traced) == ["Error", "Exception", "Task", "the"], traced
    assert {line.get("logger") for line in lines} == {"asyncio", "aiohttp.server", "py.warnings", None}
