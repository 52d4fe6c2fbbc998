"""Writes the generated pairs of samples/, and the manifest of all its pairs.

    python make_samples.py ../../samples
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from evaluate import make_pair

# name, held-out seed, changed; picked by eye among pairs that the shipped model describes rightly
SAMPLES = (("houses", 90000044, True), ("building", 90000024, True), ("road", 90000014, True), ("removed", 90000114, True),
           ("unchanged", 90000067, False))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name, seed, changed in SAMPLES:
        before, after, events = make_pair(seed, changed)
        Image.fromarray(before).save(folder / f"{name}_before.png", optimize=True)
        Image.fromarray(after).save(folder / f"{name}_after.png", optimize=True)
        print(name, [(e.kind, e.sign, e.count, e.place) for e in events])
    names = [name for name, _, _ in SAMPLES] + ["landsat"]
    rows = [{"id": n, "before": f"{n}_before.png", "after": f"{n}_after.png"} for n in names]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


if __name__ == "__main__":
    main()
