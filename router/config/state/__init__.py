"""The LMDB store of the configuration: read by workers, written by the command line."""
