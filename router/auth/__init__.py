"""Who calls: key format, key hashing, signatures, nonces. Knows no HTTP framework and no limits."""
