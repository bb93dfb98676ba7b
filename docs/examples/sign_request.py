"""Send one signed request, with nothing but Python's standard library."""

import hashlib
import hmac
import os
import secrets
import sys
import time
import urllib.request


def signed_request(url, path, body, key, secret):
    """A POST of ``body`` to ``path``, signed with the signing secret that belongs to ``key``."""
    stamp, nonce = str(int(time.time())), secrets.token_urlsafe(16)
    digest = hashlib.sha256(body).hexdigest()
    text = "\n".join(["ROUTER-HMAC-SHA256", stamp, nonce, "POST", path, "", digest])
    signature = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    request = urllib.request.Request(url + path, data=body, method="POST")
    request.add_header("Content-Type", "application/json")
    request.add_header("X-API-Key", key)
    request.add_header("X-Router-Timestamp", stamp)
    request.add_header("X-Router-Nonce", nonce)
    request.add_header("X-Router-Signature", signature)
    return request


if __name__ == "__main__":
    message = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}'
    request = signed_request(
        os.environ.get("ROUTER_URL", "http://127.0.0.1:8080"),
        "/v1/chat/completions",
        message,
        os.environ["ROUTER_API_KEY"],
        os.environ["ROUTER_SIGNING_SECRET"],
    )
    with urllib.request.urlopen(request) as reply:
        sys.stdout.write(reply.read().decode() + "\n")
