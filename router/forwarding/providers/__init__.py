"""One module per backend dialect: how to ask, how to read the answer. No I/O happens here."""
