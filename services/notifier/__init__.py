"""Tells the tenants' own systems of outcomes: signed posts, retried until answered or given up."""
