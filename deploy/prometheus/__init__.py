"""What Prometheus is told about Imprimatur: rules, their tests, and what is generated from them.

`rules/` and `tests/` are written by hand, in Prometheus' own format; `python -m deploy.prometheus` writes the rest.
"""
