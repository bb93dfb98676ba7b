"""What a call used and what it cost, as values. Knows neither HTTP nor where records go."""
