#!/usr/bin/env python3
"""Puts the figures of bench/run.sh between the markers of docs/performance.md: report.py FIGURES_DIR DOCUMENT"""
import datetime
import json
import os
import re
import sys


def lines(path):
    with open(path) as f:
        return [json.loads(line) for line in f if line.strip()]


def fastest(rows, key):
    values = [r[key] for r in rows if key in r]
    return min(values) if values else None


def cpu_name():
    with open("/proc/cpuinfo") as f:
        text = f.read()
    name = re.search(r"model name\s*: (.*)", text)
    flags = [x for x in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16") if re.search(rf"\b{x}\b", text)]
    return f"{name.group(1) if name else 'unknown CPU'} ({', '.join(flags)}), {os.cpu_count()} cores"


def table(directory):
    ours, torch, pairs = (lines(os.path.join(directory, f"{name}.jsonl")) for name in ("ours", "torch", "pairs"))
    with open(os.path.join(directory, "kernels.json")) as f:
        cases = json.load(f)
    roofs = {r["name"].split("roof: ")[1]: r for r in cases if r["name"].startswith("roof: ")}
    products = roofs.get("bf16 multiply-adds in registers", roofs["f32 multiply-adds in registers"])["gflops"]
    how = "Processor time of one thread each, side by side on a busy machine" if os.path.exists(os.path.join(directory, "cpu-time")) else "All in one run"
    out = [f"Measured {datetime.date.today()} on {cpu_name()}; PyTorch {torch[0]['torch']}. {how}; fastest of the rounds.", ""]
    out += ["| full-size random model | btcchat f32 | btcchat bf16 | PyTorch f32 | PyTorch bf16 | PyTorch bf16 / btcchat bf16 | btcchat bf16, part of the roof |",
            "| --- | --- | --- | --- | --- | --- | --- |"]
    names = {"vision_ms": "vision, 2 images", "prefill_ms": "prefill, 253 positions", "decode_ms": "decode, one token", "pair_ms": "one pair, 20 tokens"}
    roof = {"vision_ms": ("vision_gflops", products), "prefill_ms": ("prefill_gflops", products), "decode_ms": ("decode_gbs", roofs["memory read"]["gbytes"])}
    for key, name in names.items():
        row = {}
        for who, rows in (("ours", ours), ("torch", torch)):
            for dtype in ("f32", "bf16"):
                row[who, dtype] = fastest([r for r in rows if r["dtype"] == dtype], key)
        if not row["ours", "bf16"] or not row["torch", "bf16"]:
            continue
        cells = [f"{row[w, d]:,.0f} ms" if row[w, d] else "-" for w in ("ours", "torch") for d in ("f32", "bf16")]
        part = "-"
        if key in roof:
            rate, top = roof[key]
            part = f"{max(r[rate] for r in ours if r['dtype'] == 'bf16') / top:.2f}"
        out.append(f"| {name} | " + " | ".join(cells) + f" | {row['torch', 'bf16'] / row['ours', 'bf16']:.2f}x | {part} |")
    for r in pairs:
        out.append(f"| one of {r['batch']} pairs together, {r['tokens']} tokens | - | {r['pair_ms']:,.0f} ms | - | - | - | - |")
    out += ["", "Roofs and operators of the same run (ratio: part of the roof that binds, the multiply-add peak of the products' type or the memory read rate):", "",
            "| what | ms | GFLOP/s | GB/s | of the roof |", "| --- | --- | --- | --- | --- |"]
    seen = set()
    for r in cases:  # the operators come twice: with products in f32, then in bf16
        name = r["name"] + (" (bf16 products)" if r["name"] in seen else "")
        seen.add(r["name"])
        figures = [f"{r['ms']:.3f}"] + [f"{r[k]:.1f}" if r[k] else "-" for k in ("gflops", "gbytes")] + [f"{r['of_roof']:.2f}" if r["of_roof"] else "-"]
        out.append(f"| {name} | " + " | ".join(figures) + " |")
    return "\n".join(out)


def main():
    directory, document = sys.argv[1], sys.argv[2]
    begin, end = "<!-- figures: begin -->", "<!-- figures: end -->"
    with open(document) as f:
        text = f.read()
    head, tail = text.split(begin)[0], text.split(end)[1]
    new = f"{head}{begin}\n{table(directory)}\n{end}{tail}"
    with open(document + ".tmp", "w") as f:
        f.write(new)
    os.replace(document + ".tmp", document)
    print(table(directory))


if __name__ == "__main__":
    main()
