"""How a call is read and its reply rendered, one module a dialect."""
