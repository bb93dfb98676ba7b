"""How fast one call is: the benchmark against a control, and timers for single functions.

Drives the router only from outside, through its environment and its HTTP interface; nothing here
imports `router`, except what `operations.py` registers for `micro.py`, and `agent.py`,
which looks into the spool to see how far the agent is.
"""
