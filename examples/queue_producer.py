#!/usr/bin/env python3
"""Feeds the queue through Redis alone: one pair a call. BEFORE and AFTER must be paths that the workers see.

usage: queue_producer.py QUEUE ID BEFORE AFTER      (Redis at $REDIS_URL, default redis://127.0.0.1:6379, or unix:///PATH)
"""
import json
import os
import subprocess
import sys

URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")


def redis_call(*words):
    """One command: by redis-py where it is installed, else by redis-cli."""
    try:
        import redis
    except ImportError:
        where = ["-s", URL[7:]] if URL.startswith("unix://") else ["-u", URL]
        return subprocess.run(["redis-cli", *where, *words], check=True, capture_output=True, text=True).stdout.strip()
    reply = redis.Redis.from_url(URL).execute_command(*words)
    return reply.decode() if isinstance(reply, bytes) else reply


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    queue, item_id, before, after = sys.argv[1:]
    item = {"id": item_id, "before": os.path.abspath(before), "after": os.path.abspath(after)}
    # The key makes it safe to send again when the reply was lost: the same key is the same item for 24 hours.
    print(redis_call("XADD", f"btc:{{{queue}}}:in", "*", "key", item_id, "json", json.dumps(item)))


if __name__ == "__main__":
    main()
