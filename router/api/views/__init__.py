"""Endpoints that reach no backend: limits, records, health."""
