"""Writes the figures of one run of bench/queue.sh between the queue markers of docs/performance.md."""
import csv
import json
import platform
import sys
import time
from pathlib import Path


def rows(path):
    """{what: requests a second} of redis-benchmark's CSV, header lines left out."""
    found = {}
    for row in csv.reader(path.read_text().splitlines()):
        if len(row) > 1 and row[1].replace(".", "").isdigit():
            found[row[0].split()[0]] = float(row[1])
    return found


doc, items, seconds, ticks, hertz, rss_kib, work = sys.argv[1:]
doc, work = Path(doc), Path(work)
items, seconds = int(items), float(seconds)
rate = items / seconds
broker_us = int(ticks) / int(hertz) / items * 1e6
latency = json.loads((work / "latency.json").read_text())
redis, single = rows(work / "redis.csv"), rows(work / "redis1.csv")
model = next((l.split(":")[1].strip() for l in Path("/proc/cpuinfo").read_text().splitlines() if l.startswith("model name")), platform.machine())
peer = max(redis.values())
lines = [f"Measured {time.strftime('%Y-%m-%d')} on {model}, 2 cores, everything on it: redis-server (appendfsync always), one broker, two stub workers, CURVE on.", "",
         "| what | figure | bound |", "| --- | --- | --- |",
         f"| {items:,} items of a manifest, submit to last record sealed | {rate:,.0f} items/s | at least 5,000 |",
         f"| broker's processor time an item | {broker_us:.1f} µs | at most 60 |",
         f"| broker's peak memory | {int(rss_kib) / 1024:.0f} MB | 200 |",
         f"| single items through Redis at {latency['rate']:,}/s, XADD to record | p50 {latency['p50_ms']:.1f} ms, p99 {latency['p99_ms']:.1f} ms | p99 30 ms |", "",
         "Of the same run, for scale:", "", "| what | requests/s | our items/s beside it |", "| --- | --- | --- |"]
for what, figure in redis.items():
    lines.append(f"| redis-benchmark {what}, 50 connections, pipelines of 16 | {figure:,.0f} | {rate / figure:.2f} |")
for what, figure in single.items():
    lines.append(f"| redis-benchmark {what}, 1 connection, no pipeline (one fsync each) | {figure:,.0f} | {rate / figure:.1f} |")
lines += ["| asynq, its own end-to-end benchmark as published in its pull request 52 (100,000 tasks in 9.29 s, 8 processors, no fsync) | 10,763 | "
          f"{rate / 10763:.2f} |"]
begin, end = "<!-- queue figures: begin -->", "<!-- queue figures: end -->"
text = doc.read_text()
if begin not in text:
    text += f"\n## The queue\n\n{begin}\n{end}\n"
head, rest = text.split(begin)
doc.write_text(head + begin + "\n" + "\n".join(lines) + "\n" + end + rest.split(end)[1])
print("\n".join(lines))
