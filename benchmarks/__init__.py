"""What Imprimatur costs, beside its peers, on this machine: `make bench`. Never part of the product.

`systems/` has one module for each system that is measured, all with the same small face (`systems.System`); `servers`
the private RabbitMQ and PostgreSQL under them; `load` the process in which a system's own client submits; `rounds` one
round, and whose turn it is; `comparison` all systems in turn; `batches`, `fan_out`, `growth`, `fairness`, `endurance`
what is asked of Imprimatur alone; `figures` the arithmetic; `report` and `plots` what becomes of it: results.json and
docs/performance.md.
"""
