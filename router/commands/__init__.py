"""The commands of ``routerctl``, one module a topic; each imports what is heavy when it runs."""
