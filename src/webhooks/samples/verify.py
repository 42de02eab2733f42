"""Verifying a webhook of the gateway in Python 3. Copy the two functions; either is enough. Give them the body as it
came (bytes), before any JSON parser, and refuse what they refuse with 401.

Afterwards: keep event_id and let the same one have its effect once; answer 2xx within the timeout.
"""
import base64
import hashlib
import hmac
import sys
import time

TOLERANCE_S = 300


def _is_recent(timestamp, now_s):
    return timestamp.isdigit() and abs(now_s - int(timestamp)) <= TOLERANCE_S


def verify_own(secret, headers, target, body, now_s=None):
    """X-Timestamp, X-Nonce, X-Signature. target: path with query as requested. Also remember nonces for 300 s."""
    timestamp = headers.get("x-timestamp", "")
    if not _is_recent(timestamp, time.time() if now_s is None else now_s):
        return False
    digest = hashlib.sha256(body).hexdigest()
    text = "\n".join(["POST", target, timestamp, headers.get("x-nonce", ""), digest])
    wanted = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    return hmac.compare_digest(wanted, headers.get("x-signature", ""))


def verify_standard(secret, headers, body, now_s=None):
    """webhook-id, webhook-timestamp, webhook-signature (Standard Webhooks)."""
    timestamp = headers.get("webhook-timestamp", "")
    if not _is_recent(timestamp, time.time() if now_s is None else now_s):
        return False
    key = base64.b64decode(secret.removeprefix("whsec_"))
    text = headers.get("webhook-id", "").encode() + b"." + timestamp.encode() + b"." + body
    wanted = "v1," + base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    # several while a secret is being rotated
    return any(hmac.compare_digest(wanted, one) for one in headers.get("webhook-signature", "").split(" "))


# `python3 verify.py < request`: line 1 secret, line 2 target, then headers, an empty line, the body; prints both answers
if __name__ == "__main__":
    head, _, given_body = sys.stdin.buffer.read().partition(b"\n\n")
    given_secret, given_target, *lines = head.decode().split("\n")
    given = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    own = verify_own(given_secret, given, given_target, given_body)
    standard = verify_standard(given_secret, given, given_body)
    print(f"own={str(own).lower()} standard={str(standard).lower()}")
