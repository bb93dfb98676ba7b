"""The reference budget service."""
