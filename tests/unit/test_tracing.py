"""Trace contexts as headers, the settings of tracing, and what is not loaded without it."""

import subprocess
import sys

import pytest

from imprimatur.errors import ConfigurationError
from imprimatur.process import read_settings
from imprimatur.settings import TracingSettings
from imprimatur.tracing import SpanContext

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01"),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),
        (f"00-{TRACE}-{SPAN}-ff", f"00-{TRACE}-{SPAN}-03"),  # flags that mean nothing yet are not passed on
        (f"cc-{TRACE}-{SPAN}-01-what-a-later-version-adds", f"00-{TRACE}-{SPAN}-01"),
    ],
)
def test_a_context_is_read_and_written_as_the_standard_says(header: str, kept: str) -> None:
    context = SpanContext.read(header)
    assert context is not None
    assert (context.trace_id, context.span_id, context.traceparent) == (TRACE, SPAN, kept)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}-1",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
        f"01-{TRACE}-{SPAN}-01-" + "x" * 5000,
        "x" * 100_000,
    ],
)
def test_a_malformed_context_is_none(header: str | None) -> None:
    assert SpanContext.read(header) is None


def test_a_trace_state_that_is_too_long_is_left_out() -> None:
    header = f"00-{TRACE}-{SPAN}-01"
    for state, read in (("a=1", "a=1"), ("a=" + "x" * 511, "")):
        context = SpanContext.read(header, state)
        assert context is not None
        assert context.tracestate == read


def test_tracing_is_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMPRIMATUR_OTLP_ENDPOINT", raising=False)
    assert not read_settings(TracingSettings).otlp_endpoint
    monkeypatch.setenv("IMPRIMATUR_OTLP_ENDPOINT", "")
    assert not read_settings(TracingSettings).otlp_endpoint


@pytest.mark.parametrize("endpoint", ["http://collector:4318", "https://otlp.example/some/path", "http://[::1]:4318/"])
def test_an_address_of_a_collector_is_taken(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("IMPRIMATUR_OTLP_ENDPOINT", endpoint)
    assert read_settings(TracingSettings).otlp_endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "collector:4318",
        "grpc://collector:4317",
        "http://",
        "http://collector:port",
        "http://collector:99999",
        "http://user:hush@collector:4318",
        "http://collector:4318/?key=hush",
        "http://collector:4318/#hush",
        "http://collector: 4318",
        "http://[::1",
    ],
)
def test_what_is_no_plain_address_is_an_error_that_names_the_setting_and_quotes_nothing(
    monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("IMPRIMATUR_OTLP_ENDPOINT", endpoint)
    with pytest.raises(ConfigurationError, match=r"IMPRIMATUR_OTLP_ENDPOINT: .*must be http://host:port") as refused:
        read_settings(TracingSettings)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("ratio", ["-0.1", "1.1", "nan", "some"])
def test_a_share_is_from_0_to_1(monkeypatch: pytest.MonkeyPatch, ratio: str) -> None:
    monkeypatch.setenv("IMPRIMATUR_TRACE_SAMPLE_RATIO", ratio)
    with pytest.raises(ConfigurationError, match="IMPRIMATUR_TRACE_SAMPLE_RATIO"):
        read_settings(TracingSettings)


@pytest.mark.parametrize("module", ["cli.main", "gateway.__main__", "reviewer.__main__", "notifier.__main__"])
def test_without_tracing_nothing_of_opentelemetry_is_loaded(module: str) -> None:
    program = f"import sys, {module}; print(*(name for name in sys.modules if name.startswith('opentelemetry')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
