"""Which server owns a key: a single one, a master behind Sentinel, one of a cluster's masters."""
