"""Shards of rendered scenes on disk, and batches out of them.

A shard holds some hundred scenes: four renders each (before and after, two looks), already at the model's
resolution, the class map of each date, and the events.  Shards are published by renaming, so the trainer can
take up new ones while a renderer still works.

    python dataset.py render DIR --first-seed 1000000 --scenes 8000
"""

import argparse
import json
import math
import os
import random
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

import captions
from render import CLASSES, HOUSE, BUILDING, POND, ROAD, TREE, exposure_tables, render
from scenes import AFTER, BEFORE, Event, make_scene

SIDE = 224            # what the model sees
MAP = 32              # side of the class maps
TRAIN_FIRST_SEED = 1_000_000
HELD_OUT_FIRST_SEED = 90_000_000

# Small things must not be voted down when a class map is reduced.
_MAP_WEIGHT = np.array([1, 1.3, 1.3, 1.2, 1.1, 1.2, 1.2, 1.1], np.float32)


def shrink(image):
    """What the processor of the model does with a stored image: Pillow's bicubic on 8 bits."""
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.BICUBIC))


def reduce_classes(classes):
    cell = classes.shape[0] // MAP
    hot = (classes[..., None] == np.arange(len(CLASSES))).reshape(MAP, cell, MAP, cell, -1)
    return (hot.mean(axis=(1, 3)) * _MAP_WEIGHT).argmax(-1).astype(np.uint8)


def wait_while_quiet(pause_file):
    """Sleeps while the pause file exists (others measure); returns the seconds slept."""
    began = time.monotonic()
    while pause_file and os.path.exists(pause_file):
        time.sleep(0.5)
    return time.monotonic() - began


def render_shard(folder, first_seed, count, pause_file=None):
    """Writes one shard: NAME.npy (images), NAME.classes.npy, NAME.json (events; written last, so it marks the shard)."""
    name = folder / f"shard_{first_seed:09d}"
    if name.with_suffix(".json").exists():
        return
    images = np.zeros((count, 4, SIDE, SIDE, 3), np.uint8)
    maps = np.zeros((count, 2, MAP, MAP), np.uint8)
    events = []
    for i in range(count):
        wait_while_quiet(pause_file)
        seed = first_seed + i
        scene = make_scene(seed)
        for k, phase in enumerate((BEFORE, BEFORE, AFTER, AFTER)):
            image, classes = render(scene, phase, f"{seed}/{k}")
            images[i, k] = shrink(image)
            if k % 2 == 0:
                maps[i, k // 2] = reduce_classes(classes)
        events.append([asdict(e) for e in scene.events])
    for suffix, array in ((".npy", images), (".classes.npy", maps)):
        np.save(f"{name}.tmp.npy", array)
        os.replace(f"{name}.tmp.npy", f"{name}{suffix}")
    name.with_suffix(".tmp").write_text(json.dumps(events))
    os.replace(name.with_suffix(".tmp"), name.with_suffix(".json"))


class Shards:
    """All finished shards of a folder; `refresh` takes up new ones."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.names, self.images, self.maps, self.events, self.index = [], [], [], [], []
        self.refresh()

    def refresh(self):
        for path in sorted(self.folder.glob("shard_*.json")):
            if path.stem in self.names:
                continue
            self.names.append(path.stem)
            self.images.append(np.load(path.with_suffix(".npy"), mmap_mode="r"))
            self.maps.append(np.load(f"{path.with_suffix('')}.classes.npy"))
            self.events.append([[Event(**e) for e in scene] for scene in json.loads(path.read_text())])
            self.index += [(len(self.names) - 1, i) for i in range(len(self.events[-1]))]

    def scene(self, shard, i):
        return self.images[shard][i], self.maps[shard][i], self.events[shard][i]


def turn(array, symmetry):
    """One of the eight symmetries of the square, on the first two axes (row, column)."""
    transpose, mirror_x, mirror_y = symmetry
    if transpose:
        array = np.swapaxes(array, 0, 1)
    if mirror_x:
        array = array[:, ::-1]
    return array[::-1] if mirror_y else array


_NOISE = np.random.default_rng(0).standard_normal((400, 400, 3)).astype(np.float32)


def photograph(image, rng):
    """An 8-bit image as the model gets it (float, -1..1, channels first), under a random exposure with some noise."""
    tables = exposure_tables(image, rng, strength=rng.choice((.5, 1.0, 1.3, 2.0)))   # 2: burnt out or murky, as archives are
    out = np.empty((3, SIDE, SIDE), np.float32)
    for c in range(3):
        np.take(tables[c] * 2 - 1, image[..., c], out=out[c])
    grain = rng.uniform(-.01, .03)
    if grain > 0:
        x, y = rng.randrange(400 - SIDE), rng.randrange(400 - SIDE)
        out += _NOISE[y:y + SIDE, x:x + SIDE].transpose(2, 0, 1) * (2 * grain)
    return out


def normalise(image):
    """The processor's last step, without any jitter."""
    return ((image.astype(np.float64) * 0.00392156862745098).astype(np.float32).transpose(2, 0, 1) - np.float32(.5)) / np.float32(.5)


_NOUN_CLASS = {"house": HOUSE, "building": BUILDING, "road": ROAD, "tree": TREE, "pond": POND}
_NOUN_CELLS = {"house": 6, "building": 30, "road": 25, "tree": 4, "pond": 12}   # cells of 1024 that count as "there is one"


def presence(class_map):
    """(nouns that are in the image, nouns that can be asked about because the answer is clear)."""
    cells = {n: int((class_map == c).sum()) for n, c in _NOUN_CLASS.items()}
    there = {n for n, k in cells.items() if k >= _NOUN_CELLS[n]}
    return there, there | {n for n, k in cells.items() if k == 0}


def confusable(events):
    """Houses along a road: either the road is new as well, or it was there before; most wrong objects are these two
    taken for each other.  And changes in two places, one scene in 28: where they are taken for one place, that place is
    said twice.  The end of a training shows such scenes twice as often."""
    kinds = {e.kind for e in events}
    along_road = "house" in kinds and ("road" in kinds or any(e.along_road for e in events))
    return along_road or len({e.place for e in events}) > 1


class Batches:
    """Endless batches.  A batch takes each scene's four renders through the tower once and makes four pairs of
    them, two with a change (one in either direction) and two without: half the tower's work for the same number of
    pairs, and every changed pair meets its own unchanged twin in the same step."""

    def __init__(self, shards, scenes_per_batch, rng, worker=0, workers=1, confusable=False):
        self.shards, self.count, self.rng, self.confusable = shards, scenes_per_batch, rng, confusable
        self.worker, self.workers = worker, workers
        self.order = []
        self.passes = 0

    def _next_scene(self):
        if not self.order:
            self.shards.refresh()
            self.order = self.shards.index[self.worker::self.workers]
            if self.confusable:
                self.order = self.order + [at for at in self.order if confusable(self.shards.scene(*at)[2])]
            self.rng.shuffle(self.order)
            self.passes += 1
        return self.shards.scene(*self.order.pop())

    def next(self):
        """images [4n, 3, 224, 224], maps [4n, 32, 32], pairs: list of (first image, second image, events)."""
        rng = self.rng
        images, maps, pairs = [], [], []
        for k in range(self.count):
            renders, classes, events = self._next_scene()
            symmetry = rng.choice(captions.SYMMETRIES)
            for i in range(4):
                images.append(photograph(turn(np.asarray(renders[i]), symmetry), rng))
                maps.append(turn(classes[i // 2], symmetry))
            before, after = [4 * k, 4 * k + 1], [4 * k + 2, 4 * k + 3]
            rng.shuffle(before)
            rng.shuffle(after)
            pairs.append((before[0], after[0], captions.seen_as(events, symmetry)))
            if rng.random() < .7:
                pairs.append((after[1], before[1], captions.seen_as(events, symmetry, backwards=True)))
            else:
                pairs.append((before[1], after[1], captions.seen_as(events, symmetry)))
            pairs.append((before[0], before[1], []))
            pairs.append((after[1], after[0], []))
            if rng.random() < .12:            # the very same image twice, too
                i = rng.choice(before + after)
                pairs[-1] = (i, i, [])
        return np.stack(images), np.stack(maps), pairs


def main():
    parser = argparse.ArgumentParser(description="Render training shards.")
    parser.add_argument("command", choices=("render",))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first-seed", type=int, default=TRAIN_FIRST_SEED)
    parser.add_argument("--scenes", type=int, default=8000)
    parser.add_argument("--shard", type=int, default=250, help="scenes a shard")
    parser.add_argument("--pause-file", help="wait while this file exists")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    for first in range(0, args.scenes, args.shard):
        render_shard(args.folder, args.first_seed + first, min(args.shard, args.scenes - first), args.pause_file)
        print(f"{first + args.shard} scenes, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
