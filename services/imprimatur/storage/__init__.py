"""Everything that is kept, and the only SQL. PostgreSQL in production, SQLite in the embedded mode.

Each module holds the statements of one subject as plain functions over a `Transaction` or `Reader` of
`storage.database`. Where a statement needs two spellings they stand side by side. No protobuf here, no broker.
"""
