"""Has images decoded in child processes, which a bad image may kill or bind without hurting anybody else."""

from dataclasses import replace

from imprimatur import metrics
from imprimatur.errors import TimedOut, TransientError, UnreviewableInput
from imprimatur.evidence import Creative, Image
from reviewer.children import DIED, ChildPool
from reviewer.images import decoding
from reviewer.images.decoding import STAGE

DECODER_DIED = "image_decoder_died"  #: the error code of an attempt whose image ended a process


class Darkroom:
    """`processes` child processes of about 40 MB each, one image at a time each; started when first needed.

    Args:
        timeout_seconds: after which an image is given up and its process replaced.
    """

    def __init__(self, *, processes: int, timeout_seconds: float = 30.0) -> None:
        self._pool = ChildPool(processes, initializer=decoding.prepare)
        self._timeout_seconds = timeout_seconds

    async def develop(self, creative: Creative) -> Creative:
        """The creative with the look of each of its images.

        Raises:
            UnreviewableInput: an image is broken, too large or of another format.
            TransientError: a process died of an image (`image_decoder_died`), or did not start.
            TimedOut: an image took too long.
        """
        seen = [await self._developed(image, f"images[{place}]") for place, image in enumerate(creative.images)]
        return replace(creative, images=tuple(seen))

    async def close(self) -> None:
        """End the processes."""
        await self._pool.close()

    async def _developed(self, image: Image, field: str) -> Image:
        try:
            look = await self._pool.run(decoding.look_at, image.data, field, timeout_seconds=self._timeout_seconds)
        except UnreviewableInput:
            metrics.images_decoded.labels("refused").inc()
            raise
        except TimedOut:
            metrics.images_decoded.labels("timed_out").inc()
            what = f"{field}: took longer than {self._timeout_seconds:g} s to decode"
            raise TimedOut(what, stage=STAGE) from None
        except TransientError as error:
            if error.code != DIED:
                raise
            metrics.images_decoded.labels("died").inc()
            raise TransientError(f"{field}: {error.message}", code=DECODER_DIED, stage=STAGE) from error
        metrics.images_decoded.labels("decoded").inc()
        return replace(image, look=look)
