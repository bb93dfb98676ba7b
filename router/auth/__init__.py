"""Who calls: key format and hashing, signatures, nonces. Knows no HTTP framework, no limits."""
