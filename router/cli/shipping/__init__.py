"""Shipping: the agent, and the spool that it ships from."""
