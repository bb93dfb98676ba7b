"""Logs, metrics and trace context. Imported by everything, imports only the nouns."""
