"""Protobuf to domain and back: the only place that knows both.

`messages` for the broker's bodies, `creatives` for the task and its result, `jobs` for what clients see.
Requests are checked in `gateway.submissions` and `gateway.validation` before they come here.
"""
