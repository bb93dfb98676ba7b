"""Records: usage and audit events as reports and files, and whether all copies agree."""
