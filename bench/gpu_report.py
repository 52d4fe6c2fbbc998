#!/usr/bin/env python3
"""What bench/gpu.sh found, as text: gpu_report.py [--captions|--batches|--ranks] DIR

Without an option, the table for docs/performance.md and the parts that did not run or did not hold. --captions compares the records of the
CPU with the card's, --batches those of the card in different batches, --ranks the answers of ranks over NCCL with those over their links;
exit status 1 when they do not hold, the last line says how.
"""
import argparse
import datetime
import json
import os
import re
import sys

# In f32 captions are equal. In bf16 sums are taken in another order, and a token whose two best candidates are closer than that may turn.
BF16_SCORE = 0.01  # of the change score
BF16_LOGPROB = 0.1  # of a caption's mean log-probability, where the captions are equal
BF16_EQUAL = 0.9  # of the captions, equal
TARGETS = {"pairs": 100, "peer": 2.0, "alone": 120, "vision": 0.6, "decode": 0.7}  # of the issue, for an H200


def lines(directory, name):
    path = os.path.join(directory, name + ".jsonl")
    if not os.path.exists(path):
        return []
    with open(path) as f:
        return [json.loads(line) for line in f if line.strip()]


def records(directory, name):
    rows = lines(directory, name)
    bad = [r["id"] for r in rows if r["status"] != "ok"]
    if not rows or bad:
        sys.exit(f"{name}: {'no records' if not rows else 'failed records: ' + ' '.join(bad)}")
    return {r["id"]: r for r in rows}


def compare_captions(directory):
    cpu, card = records(directory, "cpu-f32"), records(directory, "card-f32")
    if cpu.keys() != card.keys():
        sys.exit("f32: not the same pairs")
    differ = [i for i in cpu if any(cpu[i][k] != card[i][k] for k in ("caption", "tokens", "changed"))]
    for i in differ:
        print(f"f32 {i}: CPU {cpu[i]['caption']!r}, card {card[i]['caption']!r}")
    low_cpu, low_card = records(directory, "cpu-bf16"), records(directory, "card-bf16")
    score = max(abs(low_cpu[i]["score"] - low_card[i]["score"]) for i in low_cpu)
    same = [i for i in low_cpu if low_cpu[i]["caption"] == low_card[i]["caption"]]
    logprob = max((abs(low_cpu[i]["logprob"] - low_card[i]["logprob"]) for i in same), default=0)
    print(f"f32: {len(cpu) - len(differ)} of {len(cpu)} captions equal the CPU's; bf16: {len(same)} of {len(low_cpu)}, score within {score:.4f} "
          f"({BF16_SCORE}), log-probability within {logprob:.4f} ({BF16_LOGPROB})")
    held = not differ and score <= BF16_SCORE and logprob <= BF16_LOGPROB and len(same) >= BF16_EQUAL * len(low_cpu)
    return 0 if held else 1


def compare_batches(directory):
    names, bad = [], []
    for dtype in ("f32", "bf16"):
        alone = records(directory, "alone-" + dtype)
        for how in ("batch3", "batch32", "batch64", "shuffled"):
            other = records(directory, f"{how}-{dtype}")
            differ = [i for i in alone if any(alone[i][k] != other.get(i, {}).get(k) for k in ("caption", "tokens", "score", "logprob"))]
            names.append(f"{how}-{dtype}")
            if differ:
                bad.append(f"{how}-{dtype} ({len(differ)} of {len(alone)})")
    print(f"differ from the pair alone: {', '.join(bad)}" if bad else f"equal to the pair alone: {', '.join(names)}")
    return 1 if bad else 0


def compare_ranks(directory):
    links, nccl = lines(directory, "ranks")
    same = links["answers"] == nccl["answers"]
    print(f"{nccl['backend']}: {nccl['items_s']:.2f} pairs/s, over the links {links['items_s']:.2f}; answers {'equal' if same else 'NOT equal'}")
    return 0 if same and nccl["nccl"] and not links["nccl"] else 1


def at_batch(rows, batch):
    return next((r for r in rows if r["batch"] == batch), None)


def stage_rows(stages, apart, torch, roof):
    """Rows of what | btcchat | PyTorch | ratio | of the roof, in milliseconds a pair."""
    slow = {r["batch"]: r["decode_ms"] for r in apart}
    names = {"vision_ms": "vision, 2 images", "prefill_ms": "prefill, 253 positions", "decode_ms": "decode, one token", "pair_ms": "a pair, 20 tokens"}
    rates = {"vision_ms": "vision_gflops", "prefill_ms": "prefill_gflops"}
    out = []
    for ours in stages:
        peer = at_batch(torch, ours["batch"])
        for key, name in names.items():
            theirs = peer.get(key) if peer else None
            part = "-"
            if roof and key in rates:
                part = f"{ours[rates[key]] * 1e-3 / roof['bf16_tflops']:.2f} of the product rate"
            elif roof and key == "decode_ms" and ours["batch"] == 1:
                part = f"{ours['decode_gbs'] / roof['copy_gbs']:.2f} of the copy bandwidth"
            if key == "decode_ms" and ours["batch"] in slow:
                part += f"; launches apart {slow[ours['batch']]:.3f} ms"
            out.append((f"{name}, batch {ours['batch']}", f"{ours[key]:.3f} ms", f"{theirs:.3f} ms" if theirs else "-", f"{theirs / ours[key]:.2f}x" if theirs else "-", part))
    return out


def goals(stages, pairs, torch, roof):
    """(what, target, figure or None, held) of the issue's table."""
    one, many = at_batch(stages, 1), [r for r in stages if r["batch"] > 1]
    rates = [1e3 / r["pair_ms"] for r in many] + [r["batched_items_s"] for r in pairs]
    peers = [1e3 / r["pair_ms"] for r in torch if "pair_ms" in r]
    best, peer = max(rates, default=None), max(peers, default=None)
    vision = max((r["vision_gflops"] * 1e-3 / roof["bf16_tflops"] for r in stages), default=None) if roof else None
    decode = one["decode_gbs"] / roof["copy_gbs"] if one and roof else None
    ratio = best / peer if best and peer else None
    t = TARGETS
    return [("pairs/s, bf16, batch", f"at least {t['pairs']}", best, best is not None and best >= t["pairs"]),
            ("times PyTorch's pairs/s", f"at least {t['peer']}", ratio, ratio is not None and ratio >= t["peer"]),
            ("one pair alone, ms", f"at most {t['alone']}", one and one["pair_ms"], bool(one) and one["pair_ms"] <= t["alone"]),
            ("vision, of the product rate", f"at least {t['vision']}", vision, vision is not None and vision >= t["vision"]),
            ("decode of one item, of the copy bandwidth", f"at least {t['decode']}", decode, decode is not None and decode >= t["decode"])]


WORTH = re.compile(r"ERROR|LINE|error|fail|differ|problem|Invalid|hazard|CPU .*card|cuda:\d+: ", re.IGNORECASE)
EXCERPT = 24


def excerpt(directory, part):
    """The lines of a failed part's log that say most; its last ones where none does."""
    path = os.path.join(directory, part + ".log")
    if not os.path.exists(path):
        return []
    with open(path, errors="replace") as f:
        text = [line.rstrip()[:400] for line in f if line.strip()]
    worth = [line for line in text if WORTH.search(line)]
    return worth[:EXCERPT] or text[-8:]


def print_ops(ops, apart, freed):
    """Products beside the library's best, and a decode step's parts, also with launches that do not overlap."""
    best = {r["free"]: r.get("tflops") for r in freed}
    products, decode = [r for r in ops if "product" in r], [r for r in ops if "decode" in r]
    if products:
        print("\n| product, bf16 | rows | outputs x inputs | btcchat, TFLOP/s | cuBLASLt, free | ratio |\n| --- | --- | --- | --- | --- | --- |")
    for r in products:
        theirs = best.get(r["product"])
        free = f"{theirs:.0f} | {r['tflops'] / theirs:.2f}" if theirs else "- | -"
        print(f"| {r['product']} | {r['m']} | {r['n']} x {r['k']} | {r['tflops']:.0f} | {free} |")
    items = sorted({r["items"] for r in decode})
    if decode:
        print("\n| of a decode step, a layer | " + " | ".join(f"{n} item{'s' if n > 1 else ''}, us | GB/s | launches apart, us" for n in items) + " |\n| --- |" + " --- | --- | --- |" * len(items))
    slow = {(r["decode"], r["items"]): f"{r['us']:.1f}" for r in apart if "decode" in r}
    for name in dict.fromkeys(r["decode"] for r in decode):
        cells = [f"{r['us']:.1f} | {r['gbs']:.0f} | {slow.get((name, n), '-')}" for n in items for r in decode if r["decode"] == name and r["items"] == n]
        print(f"| {name} | " + " | ".join(cells) + " |")


def print_report(directory):
    with open(os.path.join(directory, "parts.tsv")) as f:
        parts = [line.rstrip("\n").split("\t") for line in f]
    stages, apart, torch, pairs, roofs = (lines(directory, n) for n in ("stages", "stages-apart", "torch", "pairs", "roofs"))
    roof = roofs[0] if roofs else None
    print(f"Measured {datetime.date.today()} by `bench/gpu.sh`.")
    if roof:
        print(f"{roof['device']}, compute capability {roof['compute_capability']}, {roof['memory_gb']} GB, driver's CUDA {roof['driver']}, cuBLASLt {roof['cublaslt']}: "
              f"bf16 product {roof['bf16_tflops']} TFLOP/s, copy {roof['copy_gbs']} GB/s (read and written).")
    elif stages:
        print(f"NOT on a card ({stages[0]['backend']}): a rehearsal, its figures mean nothing.")
    if torch:
        print(f"PyTorch {torch[0]['torch']} on {torch[0]['device']}, eager mode, fused attention, in the same run.")
    if stages:
        print("\n| random model, bf16, a pair | btcchat | PyTorch | PyTorch / btcchat | of the roof |\n| --- | --- | --- | --- | --- |")
        for row in stage_rows(stages, apart, torch, roof):
            print("| " + " | ".join(row) + " |")
    print_ops(lines(directory, "ops"), lines(directory, "ops-apart"), lines(directory, "free"))
    for r in pairs:
        same = "equal bit for bit" if r["same_bits"] else "NOT equal"
        print(f"\n{r['pairs']} pairs from files, {r['slots']} slots: {r['batched_items_s']:.1f} pairs/s; one at a time {r['one_items_s']:.1f}; "
              f"a time series {r['series_items_s']:.1f}. Log-probabilities in batches and alone: {same}.")
    if stages or pairs:
        print("\n| on an H200 | wanted | seen | held |\n| --- | --- | --- | --- |")
        for what, target, seen, held in goals(stages, pairs, torch, roof):
            print(f"| {what} | {target} | {'not measured' if seen is None else f'{seen:.2f}'} | {'yes' if held else 'no' if seen is not None else '-'} |")
    print("\n| part | result | s | |\n| --- | --- | --- | --- |")
    for _, state, what, seconds, why in parts:
        print(f"| {what} | {state} | {seconds} | {why.replace('|', '/') if state == 'ok' else ''} |")
    for title, state in (("Failed", "failed"), ("Did not run", "not run")):
        chosen = [p for p in parts if p[1] == state]
        if chosen:
            print(f"\n{title}:\n" + "\n".join(f"- {p[2]}: {p[4]}" for p in chosen))
    for p in parts:
        if p[1] == "failed":
            print(f"\n{p[2]}, its log:\n```\n" + "\n".join(excerpt(directory, p[0])) + "\n```")
    return 0


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--captions", action="store_true")
    a.add_argument("--batches", action="store_true")
    a.add_argument("--ranks", action="store_true")
    a.add_argument("directory")
    o = a.parse_args()
    work = compare_captions if o.captions else compare_batches if o.batches else compare_ranks if o.ranks else print_report
    return work(o.directory)


if __name__ == "__main__":
    sys.exit(main())
