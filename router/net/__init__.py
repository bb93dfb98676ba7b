"""Sockets, TLS and name look-ups that keep one deadline. Knows no protocol above TLS."""
