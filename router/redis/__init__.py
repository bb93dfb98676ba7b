"""Redis as the limits use it: connections, discovery, scripts, the embedded server."""
