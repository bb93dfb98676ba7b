"""Budgets and quotas: windows, the ledger, reservations."""
