#!/usr/bin/env python3
"""Takes records off the queue through Redis alone, and prints one JSON object a line.

usage: queue_consumer.py QUEUE GROUP COUNT     (ends after COUNT records; Redis at $REDIS_URL, default redis://127.0.0.1:6379, or unix:///PATH)

A record stays in Redis until every group has acknowledged it. It is acknowledged here after it was printed, so that a crash shows it again
and never loses it: whoever stores records does so under (jid, idx).
"""
import json
import os
import subprocess
import sys

URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")


def redis_call(*words):
    """One command: by redis-py where it is installed, else by redis-cli. Texts, lists of these, or None."""
    try:
        import redis
    except ImportError:
        where = ["-s", URL[7:]] if URL.startswith("unix://") else ["-u", URL]
        out = subprocess.run(["redis-cli", *where, "--json", *words], check=True, capture_output=True, text=True).stdout
        return json.loads(out)
    return redis.Redis.from_url(URL, decode_responses=True).execute_command(*words)


def entries(reply):
    """(entry id, fields) out of an XREADGROUP reply, whether it is a list or a mapping."""
    streams = reply.values() if isinstance(reply, dict) else [s[1] for s in reply or []]
    for stream in streams:
        for entry in stream[0] if stream and isinstance(stream[0], list) and stream[0] and isinstance(stream[0][0], (list, tuple)) else stream:
            entry_id, fields = entry
            yield entry_id, fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2]))


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    queue, group, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
    stream = f"btc:{{{queue}}}:out"
    try:
        redis_call("XGROUP", "CREATE", stream, group, "0", "MKSTREAM")
    except Exception:  # the group is there already
        pass
    begin = "0"  # what this consumer was given before a crash and did not acknowledge comes first
    while left > 0:
        got = list(entries(redis_call("XREADGROUP", "GROUP", group, "me", "COUNT", str(min(left, 100)), "BLOCK", "5000", "STREAMS", stream, begin)))
        for entry_id, fields in got:
            print(fields["json"], flush=True)
            redis_call("XACK", stream, group, entry_id)
            left -= 1
        if not got:
            begin = ">"


if __name__ == "__main__":
    main()
