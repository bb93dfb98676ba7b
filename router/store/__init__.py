"""The record store: SQL tables of usage records and audit events, and the queries on them."""
