"""The record store: SQL tables of usage records and audit events, and the queries on them.

It knows SQL and nothing of HTTP; what fails comes out as a ``StoreError``.
"""
