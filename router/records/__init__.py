"""Usage records and audit events: what they are, how events are chained, how both are recorded."""
