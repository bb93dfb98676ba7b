"""Which components calls need, how each of them is, and what happens to calls meanwhile.

It looks and never decides: what refuses a call is refused in ``limits`` or ``records``.
"""
