"""Private RabbitMQ and PostgreSQL servers: child processes on free ports, each in a folder of its own.

For development (`make up`) and for tests. Nothing here is for production, and no service imports it.
"""
