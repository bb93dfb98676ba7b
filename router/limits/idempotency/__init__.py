"""Idempotency ids: claimed once, replies kept for duplicates."""
