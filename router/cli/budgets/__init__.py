"""Budgets: their counters, corrections by hand, and the reference budget service."""
