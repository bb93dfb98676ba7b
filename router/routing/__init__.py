"""Which backends may serve a call, in which order. Knows neither HTTP nor prices."""
