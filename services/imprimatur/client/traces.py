"""Which trace a call belongs to: the caller's own, where the caller's program traces. Nothing is recorded here."""

import sys

#: Header names and values, as gRPC takes them.
Headers = tuple[tuple[str, str], ...]


def headers() -> Headers:
    """The W3C headers of the span that the caller has open; none without one.

    OpenTelemetry is not imported for it: in a program that has not done so itself, no span can be open.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
