"""The private Redis of a host where none is configured: the process, its guard, a stand-in."""
