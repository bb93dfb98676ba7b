"""A model backend that needs no model: it speaks the OpenAI dialect and misbehaves on request.

Owns a small threaded HTTP server on plain sockets, so that it can also break the protocol, and the
command `routerctl dev mock-backend`. Needs the standard library and click only and knows nothing of
the router.
"""
