"""What Prometheus is told about Imprimatur: rules, their tests, and what is generated from them.

`rules/alerts.yaml` and `tests/` are written by hand, in Prometheus' own format. `python -m deploy.prometheus` writes
rules/slo.yaml from `objectives`, and what is made of all rules.
"""
