"""Leases that outlive a worker, or a Redis that forgets: who still holds them, who settles them."""
