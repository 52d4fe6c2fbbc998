"""The BTCChat architecture in PyTorch, small, for training.

Parameters carry the names of the checkpoint's tensors, so that exporting is writing the state dict and loading is
reading it back.  Shapes: B images or pairs, G patches a side, C tower width, D width of the language model.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    image_size: int = 224
    patch_size: int = 14
    vision_width: int = 128
    vision_mlp: int = 384
    vision_heads: int = 4
    vision_layers: int = 5      # used ones; the checkpoint has one more, because the features are its entry -2
    width: int = 192
    mlp: int = 512
    heads: int = 4
    layers: int = 4
    vocab: int = 640

    @property
    def grid(self):
        return self.image_size // self.patch_size


def attend(q, k, v, mask=None, causal=False):
    """Attention.  In training under bfloat16 as plain matrix products: their backward pass takes less than half the
    time of the fused one's on a CPU (tower 9 ms against 22, language model 3 against 20)."""
    if q.dtype != torch.bfloat16 or causal:
        return F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=mask, is_causal=causal)
    with torch.autocast("cpu", enabled=False):      # or the softmax would go to float32 and back
        scores = (q * q.shape[-1] ** -.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores + mask.to(scores.dtype)
        return scores.softmax(-1) @ v


class SelfAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(width, width))

    def forward(self, x):
        split = lambda t: t.view(*t.shape[:2], self.heads, -1).transpose(1, 2)
        mixed = attend(split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x)))
        return self.out_proj(mixed.transpose(1, 2).reshape(x.shape))


class VisionMlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VisionBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(c.vision_width, eps=1e-6) for _ in range(2))
        self.self_attn = SelfAttention(c.vision_width, c.vision_heads)
        self.mlp = VisionMlp(c.vision_width, c.vision_mlp)

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionTower(nn.Module):
    """[B, 3, 224, 224] -> [B, G*G, C]: the output of the last used block, not normalised."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.patch_embedding = nn.Conv2d(3, c.vision_width, c.patch_size, stride=c.patch_size)
        self.position_embedding = nn.Embedding(c.grid ** 2, c.vision_width)
        self.layers = nn.ModuleList([VisionBlock(c) for _ in range(c.vision_layers)])

    def forward(self, images):
        g, p = self.c.grid, self.c.patch_size
        # The strided convolution as one matrix product: the same sums, and much faster on a CPU.
        cells = images[:, :, :g * p, :g * p].reshape(-1, 3, g, p, g, p).permute(0, 2, 4, 1, 3, 5).reshape(len(images), g * g, -1)
        x = F.linear(cells, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        x = x + self.position_embedding.weight
        for layer in self.layers:
            x = layer(x)
        return x


def position_codes(count, width, seed):
    """[count, width]: slow waves of random length and phase along one axis, of size 1; neighbours are alike."""
    generator = torch.Generator().manual_seed(seed)
    waves, phase = torch.rand(width, generator=generator) * 1.75 + .25, torch.rand(width, generator=generator) * 2 * math.pi
    at = (torch.arange(count) + .5) / count
    return 2 ** .5 * torch.cos(math.pi * waves * at[:, None] + phase)


class ChangeExtraction(nn.Module):
    """Two token maps [B, G*G, C] -> one [B, C, G, G], all values >= 0 (the CE module with 0 transformer layers)."""

    def __init__(self, c):
        super().__init__()
        width, self.grid = c.vision_width, c.grid
        self.h_embedding, self.w_embedding = nn.Embedding(c.grid, width // 2), nn.Embedding(c.grid, width // 2)
        self.Conv1 = nn.Conv2d(2 * width, width, 1)
        self.LN = nn.Module()
        self.LN.left = nn.Sequential(
            nn.Conv2d(width, width // 2, 1), nn.BatchNorm2d(width // 2), nn.ReLU(),
            nn.Conv2d(width // 2, width // 2, 3, padding=1), nn.BatchNorm2d(width // 2), nn.ReLU(),
            nn.Conv2d(width // 2, width, 1), nn.BatchNorm2d(width))

    def forward(self, first, second):
        g = self.grid
        # The reference's names are swapped: h_embedding goes with the column, w_embedding with the row.
        position = torch.cat([self.h_embedding.weight[None].expand(g, g, -1), self.w_embedding.weight[:, None].expand(g, g, -1)], -1)
        position = position.reshape(g * g, -1)
        first, second = first + position, second + position
        alike = F.cosine_similarity(first, second, dim=-1)[..., None]
        both = torch.cat([first, second], -1) + alike
        merged = F.linear(both, self.Conv1.weight.flatten(1), self.Conv1.bias).transpose(1, 2).reshape(len(first), -1, g, g)
        return F.relu(self.LN.left(merged) + merged)


class Downsample(nn.Module):
    """[B, C, G, G] -> [B, (G/2)^2, D]; tokens run down a column of 2x2 cells, then to the next column.

    The submodules' names are the indices of the reference's sequence."""

    def __init__(self, c):
        super().__init__()
        self.add_module("1", nn.LayerNorm(4 * c.vision_width, eps=1e-5))
        self.add_module("2", nn.Linear(4 * c.vision_width, c.width))
        self.add_module("4", nn.Linear(c.width, c.width))

    def forward(self, x):
        b, c, g, _ = x.shape
        cells = x.reshape(b, c, g // 2, 2, g // 2, 2).permute(0, 4, 2, 3, 5, 1).reshape(b, g * g // 4, 4 * c)
        norm, up, out = (self.get_submodule(n) for n in "124")
        return out(F.gelu(up(norm(cells))))


class RmsNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-5)


def rotary(positions, head_dim):
    """cos and sin [T, head_dim], the two halves alike (the half-split layout)."""
    rate = 10000.0 ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    angle = positions.float()[:, None] * rate
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate_half(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class LlamaLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        linear = lambda i, o: nn.Linear(i, o, bias=False)
        self.heads = c.heads
        self.input_layernorm, self.post_attention_layernorm = RmsNorm(c.width), RmsNorm(c.width)
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self.self_attn, name, linear(c.width, c.width))
        self.mlp.gate_proj, self.mlp.up_proj, self.mlp.down_proj = linear(c.width, c.mlp), linear(c.width, c.mlp), linear(c.mlp, c.width)

    def forward(self, x, cos, sin, past=None, mask=None, causal=False):
        """-> (output, (keys, values) of everything seen); `past` of batch 1 serves the whole batch."""
        b, t, width = x.shape
        a, m = self.self_attn, self.mlp
        split = lambda y: y.view(b, t, self.heads, -1).transpose(1, 2)
        h = self.input_layernorm(x)
        q, k, v = split(a.q_proj(h)), split(a.k_proj(h)), split(a.v_proj(h))
        q, k = rotate_half(q, cos, sin).to(v.dtype), rotate_half(k, cos, sin).to(v.dtype)
        if past is not None:
            k = torch.cat([past[0].expand(b, -1, -1, -1), k], 2)
            v = torch.cat([past[1].expand(b, -1, -1, -1), v], 2)
        mixed = attend(q, k, v, mask, causal)
        x = x + a.o_proj(mixed.transpose(1, 2).reshape(b, t, width))
        h = self.post_attention_layernorm(x)
        return x + m.down_proj(F.silu(m.gate_proj(h)) * m.up_proj(h)), (k, v)


class Llama(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(c.vocab, c.width)
        self.model.layers = nn.ModuleList([LlamaLayer(c) for _ in range(c.layers)])
        self.model.norm = RmsNorm(c.width)
        self.lm_head = nn.Linear(c.width, c.vocab, bias=False)

    def logits(self, x):
        return self.lm_head(self.model.norm(x))


class Nano(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.vision_tower = VisionTower(c)
        self.change, self.single = ChangeExtraction(c), Downsample(c)
        self.llm = Llama(c)
        self._initialise()

    def _initialise(self):
        for part in (self.vision_tower, self.change, self.single):
            for module in part.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d)):
                    nn.init.xavier_uniform_(module.weight.flatten(1) if module.weight.dim() == 4 and module.kernel_size == (1, 1) else module.weight)
                    nn.init.zeros_(module.bias)
        # The convolution's fan_out would count its kernel; as the matrix product it is, it does not.
        nn.init.xavier_uniform_(self.vision_tower.patch_embedding.weight.data.flatten(1))
        nn.init.normal_(self.vision_tower.position_embedding.weight, std=.02)
        # The only place where a patch's position enters on purpose.  It has to be heard beside features of size 3:
        # starting at 0.1 it made up 3 % of what Conv1 gives on, and no caption told a place.
        for seed, table in enumerate((self.change.h_embedding, self.change.w_embedding)):
            table.weight.data = position_codes(*table.weight.shape, seed)
        for name, parameter in self.llm.named_parameters():
            if parameter.dim() == 2:
                out = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=.02 / math.sqrt(2 * self.c.layers) if out else .02)

    def as_map(self, tokens):
        return tokens.transpose(1, 2).reshape(len(tokens), -1, self.c.grid, self.c.grid)

    def pair_tokens(self, first, second):
        """Tower features of both dates -> tokens for the language model."""
        return self.single(self.change(first, second))

    def single_tokens(self, features):
        return self.single(self.as_map(features))

    def read_packed(self, visual, before, after, tails):
        """Runs prompt and several answers of every sample at once.

        visual [B, V, D]; `before` and `after` are the prompt's ids around the image, the same for all samples;
        tails [B, K, T] ids: K continuations that do not see each other, each at the position right after the prompt.
        The part before the image is computed once for the batch.  -> (hidden [B, K, T, D]: what predicts
        tails[..., t] stands at index t; hidden [B, D] of the prompt's last token after all layers but one)."""
        llm = self.llm
        count, k, t = tails.shape
        p, n = len(before), visual.shape[1] + len(after)
        head_dim = self.c.width // self.c.heads
        cos_p, sin_p = rotary(torch.arange(p), head_dim)
        cos, sin = rotary(torch.cat([torch.arange(p, p + n)] + [torch.arange(p + n, p + n + t)] * k), head_dim)
        allowed = torch.zeros(n + k * t, p + n + k * t, dtype=torch.bool)
        allowed[:, :p] = True
        allowed[:n, p:p + n] = torch.ones(n, n).tril().bool()
        allowed[n:, p:p + n] = True
        for i in range(k):
            s = slice(n + i * t, n + (i + 1) * t)
            allowed[s, p + s.start:p + s.stop] = torch.ones(t, t).tril().bool()
        mask = torch.zeros(allowed.shape).masked_fill_(~allowed, float("-inf"))
        embed = llm.model.embed_tokens
        prefix = embed(before[None])
        x = torch.cat([visual, embed(after)[None].expand(count, -1, -1), embed(tails.reshape(count, k * t))], 1)
        for i, layer in enumerate(llm.model.layers):
            if i == len(llm.model.layers) - 1:
                summary = x[:, n - 1]
            prefix, past = layer(prefix, cos_p, sin_p, causal=True)
            x, _ = layer(x, cos, sin, past=past, mask=mask)
        last = x[:, None, n - 1:n].expand(-1, k, -1, -1)
        return torch.cat([last, x[:, n:].view(count, k, t, -1)[:, :, :-1]], 2), summary

    @torch.no_grad()
    def generate(self, visual, before, after, limit=41, end=2):
        """Greedy answers: ids [B, up to limit], 0 after the end."""
        llm = self.llm
        embed, layers = llm.model.embed_tokens, llm.model.layers
        count = len(visual)
        x = torch.cat([embed(before)[None].expand(count, -1, -1), visual, embed(after)[None].expand(count, -1, -1)], 1)
        cos, sin = rotary(torch.arange(x.shape[1] + limit), self.c.width // self.c.heads)
        past, at, out = [None] * len(layers), 0, []
        done = torch.zeros(count, dtype=torch.bool)
        for step in range(limit):
            t = x.shape[1]
            for i, layer in enumerate(layers):
                x, past[i] = layer(x, cos[at:at + t], sin[at:at + t], past=past[i], causal=step == 0)
            at += t
            chosen = llm.logits(x[:, -1]).argmax(-1).masked_fill(done, 0)
            out.append(chosen)
            done |= chosen == end
            if done.all():
                break
            x = embed(chosen)[:, None]
        return torch.stack(out, 1)
