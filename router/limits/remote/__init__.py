"""Budgets that a budget service keeps: its contract and its client."""
