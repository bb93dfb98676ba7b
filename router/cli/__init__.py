"""``routerctl``: one module a noun, imported when one of its commands is called."""
