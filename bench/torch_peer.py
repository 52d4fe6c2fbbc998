#!/usr/bin/env python3
"""The same work in PyTorch, for the comparison in docs/performance.md: torch_peer.py CHECKPOINT [--dtype bf16|f32] [--device D] [--batch N] [--runs N]

Times, on a checkpoint of `btcchat bench make-model`: the vision tower on two images, the prefill of 253 positions, and the decode of
one token with a key/value cache, and the three together for one pair. Weights are the checkpoint's, read without copies where the dtype allows; attention is
PyTorch's fused one. With --batch N, of N pairs together. Prints one JSON object with milliseconds a pair, the fastest of the runs.
"""
import argparse
import json
import mmap
import os
import struct
import time

import torch
import torch.nn.functional as F

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def read_tensors(path, dtype, device):
    with open(path, "rb") as f:
        data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + n])
    out = {}
    for name, t in header.items():
        if name == "__metadata__":
            continue
        begin, end = t["data_offsets"]
        stored = DTYPES[t["dtype"]]
        flat = torch.frombuffer(data, dtype=stored, count=(end - begin) // stored.itemsize, offset=8 + n + begin)
        out[name] = flat.view(t["shape"]).to(device, dtype)
    return out


def read_part(root, dtype, device):
    tensors = {}
    for name in sorted(os.listdir(root)):
        if name.endswith(".safetensors"):
            tensors.update(read_tensors(os.path.join(root, name), dtype, device))
    return tensors


class Peer:
    def __init__(self, root, dtype, device):
        self.dtype, self.device = dtype, device
        with open(os.path.join(root, "vision_tower/config.json")) as f:
            self.v = json.load(f)
        with open(os.path.join(root, "llm/config.json")) as f:
            self.l = json.load(f)
        self.vt = read_part(os.path.join(root, "vision_tower"), dtype, device)
        self.lt = read_part(os.path.join(root, "llm"), dtype, device)

    def vision(self, images):
        v, w = self.v, self.vt
        heads = v["num_attention_heads"]
        h = F.conv2d(images, w["vision_model.embeddings.patch_embedding.weight"], w["vision_model.embeddings.patch_embedding.bias"], stride=v["patch_size"])
        h = h.flatten(2).transpose(1, 2) + w["vision_model.embeddings.position_embedding.weight"]
        n, t, c = h.shape
        for i in range(v["num_hidden_layers"] - 1):
            p = f"vision_model.encoder.layers.{i}."

            def linear(name, x):
                return F.linear(x, w[p + name + ".weight"], w[p + name + ".bias"])

            a = F.layer_norm(h, (c,), w[p + "layer_norm1.weight"], w[p + "layer_norm1.bias"], v["layer_norm_eps"])
            q, k, u = (linear(f"self_attn.{x}_proj", a).view(n, t, heads, c // heads).transpose(1, 2) for x in "qkv")
            o = F.scaled_dot_product_attention(q, k, u).transpose(1, 2).reshape(n, t, c)
            h = h + linear("self_attn.out_proj", o)
            a = F.layer_norm(h, (c,), w[p + "layer_norm2.weight"], w[p + "layer_norm2.bias"], v["layer_norm_eps"])
            h = h + linear("mlp.fc2", F.gelu(linear("mlp.fc1", a), approximate="tanh"))
        return h

    def rms(self, x, name):
        return F.rms_norm(x.float(), (x.shape[-1],), eps=self.l["rms_norm_eps"]).to(self.dtype) * self.lt[name]

    def llm(self, h, past, start):
        """h [n, t, d] at positions start.. ; past: per layer (k, v) or None. Returns logits of the last rows and the new cache."""
        l, w = self.l, self.lt
        heads, (n, t) = l["num_attention_heads"], h.shape[:2]
        d = l["hidden_size"] // heads
        positions, pairs = (torch.arange(*r, device=self.device).float() for r in ((start, start + t), (0, d, 2)))
        angle = positions[:, None] * l["rope_theta"] ** (-pairs / d)
        cos, sin = (torch.cat([x, x], -1).to(self.dtype) for x in (angle.cos(), angle.sin()))

        def rope(x):
            return x * cos + torch.cat([-x[..., d // 2 :], x[..., : d // 2]], -1) * sin

        cache = []
        for i in range(l["num_hidden_layers"]):
            p = f"model.layers.{i}."
            a = self.rms(h, p + "input_layernorm.weight")
            q, k, u = (F.linear(a, w[p + f"self_attn.{x}_proj.weight"]).view(n, t, heads, d).transpose(1, 2) for x in "qkv")
            q, k = rope(q), rope(k)
            if past:
                k, u = torch.cat([past[i][0], k], 2), torch.cat([past[i][1], u], 2)
            cache.append((k, u))
            o = F.scaled_dot_product_attention(q, k, u, is_causal=past is None).transpose(1, 2).reshape(n, t, -1)
            h = h + F.linear(o, w[p + "self_attn.o_proj.weight"])
            a = self.rms(h, p + "post_attention_layernorm.weight")
            gate = F.silu(F.linear(a, w[p + "mlp.gate_proj.weight"])) * F.linear(a, w[p + "mlp.up_proj.weight"])
            h = h + F.linear(gate, w[p + "mlp.down_proj.weight"])
        return F.linear(self.rms(h[:, -1:], "model.norm.weight"), w["lm_head.weight"]), cache


def fastest(runs, work, clock):
    best, out = float("inf"), None
    for _ in range(runs):
        start = clock()
        out = work()
        best = min(best, (clock() - start) * 1e3)
    return best, out


def whole_pair(peer, images, h, tokens):
    peer.vision(images)
    logits, cache = peer.llm(h, None, 0)
    for i in range(tokens - 1):
        logits.argmax(-1)  # as greedy decoding needs it; what is fed back does not matter here
        logits, cache = peer.llm(h[:, :1], cache, h.shape[1] + i)
    return logits.argmax(-1)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("checkpoint")
    a.add_argument("--dtype", choices=("bf16", "f32"), default="bf16")
    a.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    a.add_argument("--batch", type=int, default=1, help="pairs computed together")
    a.add_argument("--threads", type=int, default=os.cpu_count())
    a.add_argument("--positions", type=int, default=253)
    a.add_argument("--runs", type=int, default=2)
    a.add_argument("--stages", default="vision,prefill,decode,pair")
    a.add_argument("--tokens", type=int, default=20, help="of a whole pair")
    a.add_argument("--cpu-time", action="store_true", help="processor time of all threads, for a machine shared with others")
    o = a.parse_args()
    host = time.process_time if o.cpu_time else time.perf_counter

    def clock():
        if o.device != "cpu":
            torch.cuda.synchronize(o.device)
        return host()

    torch.set_num_threads(o.threads)
    dtype = torch.bfloat16 if o.dtype == "bf16" else torch.float32
    peer = Peer(o.checkpoint, dtype, o.device)
    out = {"torch": torch.__version__, "dtype": o.dtype, "device": o.device, "batch": o.batch, "threads": o.threads, "positions": o.positions}
    torch.manual_seed(0)
    with torch.inference_mode():
        if "vision" in o.stages:
            side = peer.v["image_size"]
            images = (torch.rand(2 * o.batch, 3, side, side) * 2 - 1).to(o.device, dtype)
            out["vision_ms"], _ = fastest(o.runs, lambda: peer.vision(images), clock)
        if "prefill" in o.stages or "decode" in o.stages:
            h = torch.randn(o.batch, o.positions, peer.l["hidden_size"]).to(o.device, dtype)
            out["prefill_ms"], (_, cache) = fastest(o.runs, lambda: peer.llm(h, None, 0), clock)
            out["decode_ms"], _ = fastest(4 * o.runs, lambda: peer.llm(h[:, :1], cache, o.positions), clock)
        if "pair" in o.stages:  # change extraction and projector (0.6 % of the operations) are left out, in PyTorch's favour
            out["pair_ms"], _ = fastest(1 if o.device == "cpu" else o.runs, lambda: whole_pair(peer, images, h, o.tokens), clock)
    print(json.dumps({k: v / o.batch if k.endswith("_ms") else v for k, v in out.items()}))


if __name__ == "__main__":
    main()
