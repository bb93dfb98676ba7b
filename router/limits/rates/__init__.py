"""Token buckets and concurrency slots."""
