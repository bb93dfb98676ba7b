"""The agent of a host: it ships what workers have spooled, and reports how far it is.

Owns every slow client: the Kafka producer, the writing end of the record store. Plain threads, no
gevent. It must not know HTTP, Flask, limits or backends, and no worker ever waits for it.
"""
