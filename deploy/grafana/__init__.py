"""The dashboards, described in Python; `python -m deploy.grafana` writes them as the JSON that Grafana reads.

One module for each dashboard; what a panel is stands in `panels`. The files in dashboards/ are never edited.
"""
