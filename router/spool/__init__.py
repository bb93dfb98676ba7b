"""Records on disk until they are shipped: written by workers, read by the agent."""
