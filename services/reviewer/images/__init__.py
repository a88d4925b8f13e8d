"""The images of creatives: fetched from where they are, decoded in processes of their own, handed to the engine.

`Images` is the whole of it for the task; engines see the outcome alone. No image is ever decoded in the worker itself.
"""

from reviewer.images.images import Images

__all__ = ["Images"]
