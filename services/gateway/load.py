"""What this process has in hand for its callers: streams, requests that are being answered, uploads.

All of it is memory. What is counted for a tenant is counted by each gateway process for itself.
"""

import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gateway.access import Caller
from gateway.quotas import Allowance, refused
from imprimatur import metrics
from imprimatur.errors import Unavailable

#: What a watch stream takes, most of it gRPC's own.
BYTES_OF_A_STREAM = 30_000
#: Requests that are being answered may have so many bytes together, per process.
MOST_REQUEST_BYTES = 128 * 1024 * 1024
#: Uploads under way may have so many bytes together, per process; of one tenant so many may be under way.
MOST_UPLOAD_BYTES = 128 * 1024 * 1024
MOST_UPLOADS_OF_A_TENANT = 4
#: Of each of these bytes there are so many: as it came, as it is stored, and on its way to the database.
COPIES = 3


class Load:
    """What all callers have in hand at this gateway."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._streams: Counter[uuid.UUID] = Counter()
        self._all_streams = 0
        self._request_bytes = 0
        self._uploads: Counter[uuid.UUID] = Counter()
        self._upload_bytes = 0

    # --- streams -----------------------------------------------------------------------------------------

    @contextmanager
    def stream(self, who: Caller) -> Iterator[None]:
        """One open stream of this caller's tenant.

        Raises:
            ResourceExhausted: there are too many.
        """
        allowed = self._allowance.of(who.limits)
        if allowed.all_streams and self._all_streams >= allowed.all_streams:
            raise refused("all_streams", allowed.all_streams, "streams are open at this gateway", "TOO_MANY_STREAMS")
        if allowed.streams and self._streams[who.tenant_id] >= allowed.streams:
            raise refused("streams", allowed.streams, "streams of this tenant are open here", "TOO_MANY_STREAMS")
        self._streams[who.tenant_id] += 1
        self._all_streams += 1
        try:
            yield
        finally:
            self._all_streams -= 1
            self._streams[who.tenant_id] -= 1
            if not self._streams[who.tenant_id]:
                del self._streams[who.tenant_id]

    # --- requests ----------------------------------------------------------------------------------------

    @contextmanager
    def request(self, size: int) -> Iterator[None]:
        """One unary call whose request has so many bytes; whoever calls, for it is this process's memory.

        Raises:
            Unavailable: too much is in hand already.
        """
        if self._request_bytes and self._request_bytes + size > MOST_REQUEST_BYTES:
            metrics.limit_refusals.labels("request_bytes").inc()
            raise Unavailable("this gateway has its hands full; try again shortly", reason="GATEWAY_BUSY")
        self._request_bytes += size
        try:
            yield
        finally:
            self._request_bytes -= size

    # --- uploads -----------------------------------------------------------------------------------------

    @contextmanager
    def upload(self, who: Caller) -> Iterator["Upload"]:
        """One upload of this caller's tenant. What it has sent counts until the end of the block.

        Raises:
            ResourceExhausted: the tenant has too many under way.
            Unavailable: while it grows: too much is in hand already.
        """
        if self._uploads[who.tenant_id] >= MOST_UPLOADS_OF_A_TENANT:
            what = "uploads of this tenant are under way here"
            raise refused("uploads", MOST_UPLOADS_OF_A_TENANT, what, "TOO_MANY_UPLOADS")
        self._uploads[who.tenant_id] += 1
        upload = Upload(self._take_upload_bytes)
        try:
            yield upload
        finally:
            self._upload_bytes -= upload.size
            self._uploads[who.tenant_id] -= 1
            if not self._uploads[who.tenant_id]:
                del self._uploads[who.tenant_id]

    def _take_upload_bytes(self, size: int) -> None:
        if self._upload_bytes + size > MOST_UPLOAD_BYTES:
            metrics.limit_refusals.labels("upload_bytes").inc()
            raise Unavailable("this gateway has its hands full; try again shortly", reason="GATEWAY_BUSY")
        self._upload_bytes += size


class Upload:
    """What one upload has sent.

    Attributes:
        size: bytes so far.
    """

    def __init__(self, take: Callable[[int], None]) -> None:
        self._take = take
        self.size = 0

    def grow(self, size: int) -> None:
        """So many more bytes came.

        Raises:
            Unavailable: there is no room for them.
        """
        self._take(size)
        self.size += size
