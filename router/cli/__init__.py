"""``routerctl``: one module a noun; each imports what is heavy when it runs."""
