"""Usage records and audit events: their fields, the chain of events, and recording both."""
