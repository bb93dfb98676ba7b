"""What ``make run`` starts."""
