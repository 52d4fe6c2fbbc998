#!/usr/bin/python3
"""One `btcchat scene` from outside: geo_scene.py PROGRAM SECONDS BEFORE AFTER OUT.gpkg. Prints one JSON object: windows finished
(captioned or left out), how many of them were captioned and how many a second (of runs to the end), the peak of each process and the
most that all had at once. The run is stopped after SECONDS as by Ctrl-C (0: it runs to its end, the writing of the layers included).
What it wrote is deleted."""
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time


def status(pid, key):
    try:
        with open(f'/proc/{pid}/status') as f:
            return next((line.split()[1] for line in f if line.startswith(key + ':')), None)
    except OSError:
        return None


def family(pid):
    """pid and what it started, by pid."""
    parents = {int(p): status(p, 'PPid') for p in os.listdir('/proc') if p.isdigit()}
    found = {pid}
    while True:
        more = {p for p, parent in parents.items() if parent and int(parent) in found} - found
        if not more:
            return found
        found |= more


def main():
    program, seconds, before, after, out = sys.argv[1], float(sys.argv[2]), *sys.argv[3:6]
    peaks, names, most = {}, {}, 0
    with tempfile.TemporaryFile() as said:
        start = time.monotonic()
        run = subprocess.Popen([program, 'scene', before, after, '-o', out], stdout=subprocess.DEVNULL, stderr=said)
        while run.poll() is None:
            now = 0
            for pid in family(run.pid):
                peak, resident = status(pid, 'VmHWM'), status(pid, 'VmRSS')
                if peak:
                    peaks[pid] = max(peaks.get(pid, 0), int(peak))
                    names[pid] = status(pid, 'Name')
                    now += int(resident or 0)
            most = max(most, now)
            if seconds and time.monotonic() - start > seconds:
                run.send_signal(signal.SIGINT)
                seconds = 0
            time.sleep(0.2)
        wall = time.monotonic() - start
        said.seek(0)
        text = said.read().decode(errors='replace')
    done = re.findall(r'(\d+) of \d+ windows are finished', text) or re.findall(r'(\d+) windows: ', text)
    captioned = re.findall(r'(\d+) captioned', text)
    stem = out[:-len('.gpkg')]
    for path in glob.glob(glob.escape(stem) + '.*'):
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    if not done:
        sys.exit(text[-2000:])
    each = {}
    for pid, peak in peaks.items():
        each[names[pid]] = max(each.get(names[pid], 0), peak)
    result = {'windows': int(done[-1]), 'seconds': round(wall, 1)}
    if captioned:
        result.update(captioned=int(captioned[-1]), captioned_s=round(int(captioned[-1]) / wall, 2))
    result['peak_mb'] = {name: round(kib / 1024) for name, kib in sorted(each.items())}
    result['all_at_once_mb'] = round(most / 1024)
    print(json.dumps(result))


main()
