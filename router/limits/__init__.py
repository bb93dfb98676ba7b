"""Rate buckets, the budget ledger and idempotency, exact over every worker. Knows no HTTP."""
