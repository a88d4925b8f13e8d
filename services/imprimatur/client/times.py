"""Python's times as protobuf's. Nothing else lives here."""

from datetime import datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp


def duration(length: timedelta | None) -> Duration | None:
    """None stays None: the field is left out."""
    if length is None:
        return None
    converted = Duration()
    converted.FromTimedelta(length)
    return converted


def timestamp(time: datetime | None) -> Timestamp | None:
    """None stays None: the field is left out. Raises ValueError for a time without a zone."""
    if time is None:
        return None
    if time.tzinfo is None:
        raise ValueError("a time needs a time zone, such as datetime.now(UTC)")
    converted = Timestamp()
    converted.FromDatetime(time)
    return converted
