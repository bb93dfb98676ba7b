"""Kafka: the sink, its producer, and reading a topic back."""
