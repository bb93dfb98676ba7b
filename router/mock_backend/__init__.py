"""A model backend that needs no model: it speaks the OpenAI dialect and misbehaves on request.

Owns a small threaded HTTP server on plain sockets, so that it can also break the protocol, and the
`routerctl mock-backend` command. Standard library and click only; it knows nothing of the router.
"""
