"""Measures a model folder on held-out pairs, or the captions another program made for them.

    python evaluate.py export-pairs DIR [--count 500]     the held-out pairs as PNG, with manifests and references
    python evaluate.py model MODEL DIR [--out FILE]       captions them with the PyTorch model of the folder, and scores
    python evaluate.py score DIR CAPTIONS.jsonl           scores captions of any program, {"id": .., "caption": ..} a line
    python evaluate.py folder MODEL DIR                   captions DIR/A/x against DIR/B/x for real images; no scores
    python evaluate.py export-relit DIR OUT               every image of DIR/A and DIR/B beside itself, shifted a little and
                                                          in another exposure: real pairs that are unchanged for certain

The pairs' seeds begin at 90,000,000; training scenes begin at 1,000,000.  Three manifests: the pairs, the same image
twice (id ending in -same), the dates swapped (id ending in -swap).
"""

import argparse
import json
import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

import captions
import dataset
import export
import metrics
from render import expose, render
from scenes import AFTER, BEFORE, Event, make_scene
from tokenizer import Tokenizer

# (figure, words, bound, at least or at most)
BOUNDS = (("change", "change or no change decided right", .98), ("objects_f1", "object words F1", .95),
          ("direction", "built or removed right", .98), ("place_within_one", "place within one of nine cells", .85),
          ("place_exact", "place exact", .60), ("house_count", "house count in range", None),
          ("repetitions", "captions with a repetition", 0), ("cider_d", "CIDEr-D", None))


def make_pair(seed, changed):
    """(before, after, events): two 256 x 256 images as they would come from a camera."""
    rng = random.Random(f"held-out/{seed}")
    scene = make_scene(seed)
    if changed:
        backwards = rng.random() < .4
        phases = (AFTER, BEFORE) if backwards else (BEFORE, AFTER)
        events = captions.seen_as(scene.events, backwards=backwards)
    else:
        phases, events = (rng.choice((BEFORE, AFTER)),) * 2, []
    images = [expose(render(scene, phase, f"held-out/{seed}/{k}")[0], rng) for k, phase in enumerate(phases)]
    return images[0], images[1], events


def export_pairs(folder, count, skip=0):
    (folder / "pairs").mkdir(parents=True, exist_ok=True)
    manifests = {suffix: [] for suffix in ("", "-same", "-swap")}
    truth = []
    for i in range(count):
        seed = dataset.HELD_OUT_FIRST_SEED + skip + i
        before, after, events = make_pair(seed, changed=i % 2 == 0)
        name = f"p{i:04d}"
        files = [f"pairs/{name}_before.png", f"pairs/{name}_after.png"]
        for file, image in zip(files, (before, after)):
            Image.fromarray(image).save(folder / file)
        for suffix, (a, b) in (("", files), ("-same", files[:1] * 2), ("-swap", files[::-1])):
            manifests[suffix].append({"id": name + suffix, "before": a, "after": b})
        truth.append({"id": name, "seed": seed, "events": [asdict(e) for e in events],
                      "references": captions.references(events, 5, random.Random(f"references/{seed}"))})
    for suffix, rows in manifests.items():
        (folder / f"manifest{suffix}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "references.jsonl").write_text("".join(json.dumps(r) + "\n" for r in truth))


def export_relit(folder, out):
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for path in sorted((folder / "A").glob("*.png")) + sorted((folder / "B").glob("*.png")):
        rng = random.Random(f"relit/{path.parent.name}/{path.stem}")
        image = Image.open(path).convert("RGB").resize((256, 256), Image.BICUBIC)
        shifted = image.transform(image.size, Image.AFFINE, (1, 0, rng.uniform(-2, 2), 0, 1, rng.uniform(-2, 2)), Image.BICUBIC)
        if rng.random() < .5:
            shifted = shifted.filter(ImageFilter.GaussianBlur(rng.uniform(.3, 1)))
        name = f"{path.parent.name}-{path.stem}"
        image.save(out / f"{name}-0.png")
        Image.fromarray(expose(np.asarray(shifted), rng)).save(out / f"{name}-1.png")
        rows.append({"id": name, "before": f"{name}-0.png", "after": f"{name}-1.png"})
    (out / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]


def load_image(path):
    return dataset.normalise(dataset.shrink(np.asarray(Image.open(path).convert("RGB"))))


class Captioner:
    def __init__(self, folder):
        self.model = export.load(folder)
        self.tokens = Tokenizer(Path(folder) / "llm/tokenizer.model")

    @torch.no_grad()
    def pairs(self, pairs, question=captions.QUESTIONS[0], batch=25):
        """Captions of (first file, second file) pairs."""
        before, after = map(torch.tensor, self.tokens.prompt(question))
        out = []
        for i in range(0, len(pairs), batch):
            group = pairs[i:i + batch]
            files = sorted({f for pair in group for f in pair})
            features = self.model.vision_tower(torch.from_numpy(np.stack([load_image(f) for f in files])))
            first, second = ([files.index(p[k]) for p in group] for k in (0, 1))
            visual = self.model.pair_tokens(features[first], features[second])
            out += [self.tokens.decode(ids) for ids in self.model.generate(visual, before, after)]
        return out

    @torch.no_grad()
    def ask(self, file, question):
        before, after = map(torch.tensor, self.tokens.prompt(question))
        visual = self.model.single_tokens(self.model.vision_tower(torch.from_numpy(load_image(file))[None]))
        return self.tokens.decode(self.model.generate(visual, before, after)[0])


def report(folder, told):
    """Prints the table of bounds for captions `told` {id: caption}."""
    truth = {row["id"]: row for row in read_lines(folder / "references.jsonl")}
    events = {k: [Event(**e) for e in row["events"]] for k, row in truth.items()}
    straight = [k for k in truth if k in told]
    missing = len(truth) - len(straight)
    if missing:
        print(f"{missing} pairs have no caption and are left out")
    figures = metrics.score([told[k] for k in straight], [events[k] for k in straight], [truth[k]["references"] for k in straight])
    print(f"{figures['pairs']} held-out pairs, {sum(bool(events[k]) for k in straight)} of them changed\n")
    print("| figure | measured | bound |\n| --- | --- | --- |")
    for key, words, bound in BOUNDS:
        value = figures[key]
        print(f"| {words} | {value if key == 'repetitions' else format(value, '.3f')} | {'-' if bound is None else bound} |")
    same = [k for k in truth if k + "-same" in told]
    if same:
        right = sum(captions.is_no_change(told[k + "-same"]) for k in same)
        print(f"| identical images told as no change | {right} of {len(same)} | all |")
    swap = [k for k in straight if k + "-swap" in told]
    if swap:
        swapped = metrics.score([told[k + "-swap"] for k in swap], [captions.seen_as(events[k], backwards=True) for k in swap])
        flips = []
        for k in swap:
            there, back = captions.parse(told[k]), captions.parse(told[k + "-swap"])
            flips += [there[kind][0] == -back[kind][0] for kind in there.keys() & back.keys()]
        print(f"| swapped dates: direction turned round | {sum(flips)} of {len(flips)} | all |")
        print(f"| swapped dates: change decided right | {swapped['change']:.3f} | - |")
        print(f"| swapped dates: captions with a repetition | {swapped['repetitions']} | 0 |")
    changed = [k for k in straight if events[k]]
    print(f"\nF1 by object: {figures['per_kind_f1']}")
    print(f"changed pairs called changed: {sum(not captions.is_no_change(told[k]) for k in changed)} of {len(changed)}; "
          f"unchanged called unchanged: {sum(captions.is_no_change(told[k]) for k in straight if not events[k])} of {len(straight) - len(changed)}")
    return figures


def caption_all(model, folder):
    captioner = Captioner(model)
    told = {}
    for suffix in ("", "-same", "-swap"):
        rows = read_lines(folder / f"manifest{suffix}.jsonl")
        pairs = [(folder / r["before"], folder / r["after"]) for r in rows]
        told |= dict(zip((r["id"] for r in rows), captioner.pairs(pairs)))
    return told


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(dest="command", required=True)
    p = sub.add_parser("export-pairs")
    p.add_argument("folder", type=Path)
    p.add_argument("--count", type=int, default=500)
    p.add_argument("--skip", type=int, default=0, help="leave out so many of the first held-out seeds: scenes no choice was made by")
    p = sub.add_parser("model")
    p.add_argument("model", type=Path)
    p.add_argument("folder", type=Path)
    p.add_argument("--out", type=Path, help="write the captions here, too")
    p = sub.add_parser("score")
    p.add_argument("folder", type=Path)
    p.add_argument("captions", type=Path, nargs="+")
    p = sub.add_parser("folder")
    p.add_argument("model", type=Path)
    p.add_argument("folder", type=Path)
    p = sub.add_parser("export-relit")
    p.add_argument("folder", type=Path)
    p.add_argument("out", type=Path)
    args = parser.parse_args()

    if args.command == "export-pairs":
        export_pairs(args.folder, args.count, args.skip)
    elif args.command == "export-relit":
        export_relit(args.folder, args.out)
    elif args.command == "score":
        report(args.folder, {r["id"]: r["caption"].strip() for f in args.captions for r in read_lines(f) if "caption" in r})
    elif args.command == "model":
        told = caption_all(args.model, args.folder)
        if args.out:
            args.out.write_text("".join(json.dumps({"id": k, "caption": c}) + "\n" for k, c in told.items()))
        report(args.folder, told)
    else:
        names = sorted(p.name for p in (args.folder / "A").glob("*.png"))
        captioner = Captioner(args.model)
        there = captioner.pairs([(args.folder / "A" / n, args.folder / "B" / n) for n in names])
        back = captioner.pairs([(args.folder / "B" / n, args.folder / "A" / n) for n in names])
        for name, forward, backward in zip(names, there, back):
            print(f"{name}\n    {forward}\n    swapped: {backward}")


if __name__ == "__main__":
    main()
