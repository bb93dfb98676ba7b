"""The steps of a call, one module each, in the order of ``api.pipeline``."""
