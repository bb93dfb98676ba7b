"""One entry point for model inference; this is the path of one call.

1. ``app`` opens a :class:`~router.api.scope.Scope`: request id, clock, trace context.
2. ``api.pipeline.enter`` lets it in: ``auth`` proves who calls, ``api.dialects`` reads the body
   into a :class:`~router.call.Call`, ``limits`` admits it in one exchange with Redis: not too
   often, a new id, budgets that cover what it may cost. That is reserved as a lease.
3. ``api.pipeline.serve`` serves it: ``routing`` names the backends, ``upstream`` tries them inside
   one deadline, each by its ``providers`` API, and ``api.dialects`` renders the reply.
4. ``records`` appends usage record and audit event to the ``spool``, then ``limits`` charges what
   the call has used, both before the last byte goes out.
5. ``api.pipeline.end`` runs when the response has closed, however it ended, and exactly once:
   ``limits`` charges what was not answered whole, ``telemetry`` counts the call and writes its one
   log line.

``services`` wires all of it, ``app`` turns it into a Flask application, ``wsgi`` is what gunicorn
loads, ``cli`` is ``routerctl``. docs/design.md has the files of every step.
"""
