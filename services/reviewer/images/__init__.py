"""The images of creatives: brought together, decoded in processes of their own, given to the engine.

`images.Images` is the whole of it for the task; engines see the outcome alone. No image is ever decoded in the worker
itself. This file imports nothing: `decoding` runs in child processes, which are to stay small.
"""
