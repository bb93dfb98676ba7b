"""One entry point for model inference; this is the path of one call.

1. ``api.scope`` opens a :class:`~router.api.scope.Scope`: request id, clock, trace context.
2. ``auth`` proves who calls: key checksum, hashed look-up in ``state/``, optional signature.
3. ``api.native`` / ``api.openai`` read the body into a :class:`~router.call.Call`.
4. ``api.admission`` asks ``limits``, in one exchange with Redis: may it come so often, is its id
   new, do its budgets cover it? What it may cost is held as a lease.
5. ``gateway`` asks ``routing`` for the candidates and lets ``forwarding`` walk them inside one
   deadline; the reply streams back while its usage is tapped.
6. ``api.recording`` appends usage record and audit event to the spool, before the last byte goes
   out.
7. ``api.settlement`` runs when the response ends, however it ends, and exactly once: it charges
   what the call used, counts it and writes its one log line.

``services`` wires all of it, ``app`` turns it into a Flask application, ``wsgi`` is what gunicorn
loads, ``cli`` is ``routerctl``.
"""
