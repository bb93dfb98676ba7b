"""Records as files: the audit trail, usage exports, reconciliation."""
