"""What usage costs, in nano-USD."""
