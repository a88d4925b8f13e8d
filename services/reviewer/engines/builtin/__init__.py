"""The builtin engine: no network, no key, deterministic. Reads English text, checks images technically.

`engine` is the door. Nothing here decides what happens to a creative: `imprimatur.policy` does.
"""
