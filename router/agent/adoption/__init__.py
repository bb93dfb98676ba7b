"""What dead workers left open: records of interrupted calls, and leases settled from the disk."""
