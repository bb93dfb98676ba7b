"""Records as files, and their checks: the audit trail, usage records, reconciliation.

It knows files and formats; where records are stored it does not know.
"""
