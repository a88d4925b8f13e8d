"""How long we take for an answer: less than its client waits, so that what arrives is ours and says why."""

from typing import Any

import grpc.aio

#: The longest that a unary call or the opening of a stream may take, whatever the client's deadline.
LONGEST_CALL_SECONDS = 15.0
#: The same of an upload, which goes as fast as its client sends.
LONGEST_UPLOAD_SECONDS = 120.0
#: What we leave of a client's deadline for the way back, and for tidying up after a call that was cut short: a tenth,
#: but half a second, but never more than a quarter.
_SHARE_LEFT, _SECONDS_LEFT, _MOST_SHARE_LEFT = 0.1, 0.5, 0.25


def allowed_seconds(
    context: "grpc.aio.ServicerContext[Any, Any]", *, longest_seconds: float = LONGEST_CALL_SECONDS
) -> float:
    """What the call's handler may still take."""
    remaining = context.time_remaining()
    if remaining is None:
        return longest_seconds
    left = min(max(_SHARE_LEFT * remaining, _SECONDS_LEFT), _MOST_SHARE_LEFT * remaining)
    return min(longest_seconds, max(remaining - left, 0.0))
