"""Budgets held by a budget service: its contract and its client."""
