"""Logs, metrics, trace context and redaction. Every folder may import it; it imports only nouns."""
