"""``routerctl``: one module a noun, imported when one of its commands is called.

``main`` lists the commands, ``options`` and ``output`` are what all of them have in common.
"""
