"""Sends a call to a backend and brings the reply back. Knows neither callers nor limits."""
