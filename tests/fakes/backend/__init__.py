"""The one fake of whatever answers over HTTP: a live server that records, answers and misbehaves.

`server` listens on a real loopback socket, records every request byte for byte and plays a script
on each connection. `scripts` has the usual scripts and the bytes of replies. `openai_api` and
`anthropic_api` answer as those APIs do, and break their answers on request.
"""
