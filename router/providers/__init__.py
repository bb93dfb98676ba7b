"""Provider APIs: one file or folder owns all that is special about its API. No I/O."""
