"""Settings from the environment, the declarative document and its store ``state/``."""
