"""Trains the nano model from scratch on rendered scenes.

    python train.py --shards DIR --tokenizer FILE --out DIR --minutes 70

Two stages in one run.  First the tower and the change module alone, on dense losses (what class each spot has, and
what appears or disappears there): without them the language model finds nothing to hold on to and learns one
constant sentence.  Then everything together, the dense losses fading to a fraction.  The heads of the dense losses
are thrown away.

The clock of the schedule is training time, without pauses and without evaluation.

Work is shared by processes of one thread each that meet once a step to add up their gradients, not by the threads of
one process: those meet thousands of times a step, and on a machine shared with others every meeting waits for the
slowest.
"""

import argparse
import json
import os
import random
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

import captions
import dataset
import export
from model import Config, Nano
from render import CLASSES
from scenes import KINDS
from tokenizer import EOS, Tokenizer

N_CLASSES = len(CLASSES)
# Ground is everywhere and says little; houses and ponds are small and say much.
CLASS_WEIGHT = torch.tensor([.6, 1, 1.2, 1, 1, 1.2, 1.2, .8])


class DenseHeads(nn.Module):
    """Heads that exist only while training."""

    def __init__(self, c):
        super().__init__()
        self.classes = nn.Linear(c.vision_width, 4 * N_CLASSES)    # 2x2 class cells of every patch, from the tower
        self.changes = nn.Linear(c.vision_width, 2 * N_CLASSES)    # share of a patch that appears and that disappears, per class
        self.tokens = nn.Linear(c.width, 2 * N_CLASSES)            # the same from the projector's tokens
        self.summary = nn.Linear(c.width, 2 * len(KINDS) * 11)     # events of the pair: is there one, and its place of ten
        self.position = nn.Linear(c.width, c.grid)                 # a token's own column and row, grid / 2 each


def class_loss(heads, features, maps, grid):
    logits = heads.classes(features).float().view(-1, grid, grid, 2, 2, N_CLASSES).permute(0, 5, 1, 3, 2, 4)
    return F.cross_entropy(logits.reshape(-1, N_CLASSES, 2 * grid, 2 * grid), maps, weight=CLASS_WEIGHT)


def change_targets(first, second, grid):
    """[B, grid, grid, 2 * classes]: the share of each patch where a class appears, and where it disappears."""
    a, b = F.one_hot(first, N_CLASSES), F.one_hot(second, N_CLASSES)
    both = torch.cat([(b - a).clamp(min=0), (a - b).clamp(min=0)], -1).float()
    cell = dataset.MAP // grid
    return both.view(-1, grid, cell, grid, cell, 2 * N_CLASSES).mean((2, 4))


def position_loss(logits):
    """Every token should say where it stands.  All other dense losses are blind to position, and the language model,
    which knows a token's number but sees rows only as a number modulo 8, told rows far worse than columns."""
    half = logits.shape[-1] // 2
    number = torch.arange(half * half)
    column, row = (number // half).expand(len(logits), -1), (number % half).expand(len(logits), -1)
    return F.cross_entropy(logits[..., :half].flatten(0, 1), column.flatten()) + F.cross_entropy(logits[..., half:].flatten(0, 1), row.flatten())


def summary_loss(logits, pairs):
    """Which events there are and where, from one state of the language model: it teaches it to add up over tokens."""
    logits = logits.view(len(pairs), 2 * len(KINDS), 11)
    there = torch.zeros(len(pairs), 2 * len(KINDS))
    where, rows = [], []
    for i, (_, _, events) in enumerate(pairs):
        for event in events:
            slot = KINDS.index(event.kind) * 2 + (event.sign < 0)
            there[i, slot] = 1
            rows.append((i, slot))
            where.append(event.place)
    loss = F.binary_cross_entropy_with_logits(logits[..., 0], there) * 4
    if rows:
        i, slot = torch.tensor(rows).T
        loss = loss + F.cross_entropy(logits[i, slot, 1:], torch.tensor(where))
    return loss


def pad(rows):
    """Lists of ids of any depth -> one tensor, filled with 0 on the right."""
    length = max(len(r) for group in rows for r in group)
    return torch.tensor([[r + [0] * (length - len(r)) for r in group] for group in rows])


class Trainer:
    def __init__(self, args, rank=0):
        self.args, self.rank = args, rank
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        torch.manual_seed(args.seed)
        self.rng = random.Random(f"{args.seed}/{rank}")
        self.tokens = Tokenizer(args.tokenizer)
        self.config = Config(vocab=self.tokens.size)
        self.model, self.heads = Nano(self.config), DenseHeads(self.config)
        if args.init:
            self.model.load_state_dict(export.load(args.init).state_dict())
        if args.start:
            state = torch.load(args.start, weights_only=False)
            self.model.load_state_dict(export.best_weights(state))
            self.heads.load_state_dict(state["heads"])
        self.batches = dataset.Batches(dataset.Shards(args.shards), args.scenes, self.rng, rank, args.workers, args.confusable)
        self.prompts = [tuple(map(torch.tensor, self.tokens.prompt(q))) for q in captions.QUESTIONS]
        named = list(self.model.named_parameters()) + list(self.heads.named_parameters())
        decays = lambda n, p: p.dim() >= 2 and "embed" not in n
        self.optimiser = torch.optim.AdamW(
            [{"params": [p for n, p in named if n.startswith("llm.") == llm and decays(n, p) == decay],
              "weight_decay": args.decay * decay, "factor": args.llm_factor if llm else 1.0}
             for llm in (False, True) for decay in (True, False)],
            lr=args.rate, betas=(.9, .98), fused=True)
        self.parameters = [p for _, p in named]
        self.step, self.net, self.paused, self.seen = 0, 0.0, 0.0, 0
        self.progress = 0.0
        self.mean, self.mean_of = None, 0     # sum of the weights of the steps since args.average_from, and how many

    def clock_progress(self):
        """0 at the start, 1 at the end.  With a wall-clock end, the share of what is still left shrinks in pauses, so
        that the schedule always comes to its end."""
        if self.args.stop_at:
            return self.net / max(self.net + self.args.stop_at - time.time(), 1) if time.time() < self.args.stop_at else 1.0
        return min(1.0, self.net / (60 * self.args.minutes))

    def dense_weight(self):
        """Full while the language model waits, then down to the floor at 60 % of the time."""
        p, start = self.progress, self.args.dense_only
        return 1.0 if p < start else max(self.args.dense_floor, 1 - (p - start) / (.6 - start) * (1 - self.args.dense_floor))

    def set_rate(self):
        # Straight down: a cosine spends the last sixth of a short run nearly standing still.
        rate = self.args.rate * min(1, (self.step + 1) / 150) * max(.01, 1 - self.progress)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        return rate

    def caption_loss(self, visual, pairs):
        before, after = self.prompts[0] if self.rng.random() < .8 else self.rng.choice(self.prompts[1:])
        tails = pad([[self.tokens.answer(s) for s in captions.references(e, self.args.captions, self.rng)] for _, _, e in pairs])
        hidden, summary = self.model.read_packed(visual, before, after, tails)
        real = tails > 0
        return F.cross_entropy(self.model.llm.logits(hidden[real]).float(), tails[real]), summary_loss(self.heads.summary(summary).float(), pairs)

    def question_loss(self, features, maps):
        """A few yes/no questions about single images, through the same projector; only the answers count."""
        chosen = self.rng.sample(range(len(features)), self.args.questions)
        rows, answer_at = [], []
        for i in chosen:
            there, clear = dataset.presence(maps[i].numpy())
            group = []
            for _ in range(3):
                for _ in range(8):
                    question, answer = captions.presence_qa(there, self.rng)
                    if any(n in question for n in clear) or not clear:
                        break
                _, after = self.tokens.prompt(question)
                answer_ids = self.tokens.answer(answer)
                group.append(after + answer_ids)
                answer_at.append((len(after), len(answer_ids)))
            rows.append(group)
        tails = pad(rows)
        counted = torch.zeros(tails.shape, dtype=torch.bool).view(-1, tails.shape[-1])
        for row, (start, length) in enumerate(answer_at):
            counted[row, start:start + length] = True
        counted = counted.view(tails.shape)
        visual = self.model.single_tokens(features[chosen])
        hidden, _ = self.model.read_packed(visual, self.prompts[0][0], torch.empty(0, dtype=torch.long), tails)
        return F.cross_entropy(self.model.llm.logits(hidden[counted]).float(), tails[counted])

    def losses(self):
        """-> (losses by name, number of pairs) of the next batch."""
        args, grid = self.args, self.config.grid
        # A few pairs of a few scenes are too few for batch statistics: from here on the running ones count, as later.
        self.model.change.train(self.progress < args.freeze_norm)
        images, maps, pairs = self.batches.next()
        images, maps = torch.from_numpy(images), torch.from_numpy(maps.copy()).long()
        features = self.model.vision_tower(images)
        first, second = [p[0] for p in pairs], [p[1] for p in pairs]
        changed = self.model.change(features[first], features[second])
        targets = change_targets(maps[first], maps[second], grid)
        losses = {"class": class_loss(self.heads, features, maps, grid),
                  "change": F.binary_cross_entropy_with_logits(self.heads.changes(changed.permute(0, 2, 3, 1)).float(), targets) * 16}
        if self.progress >= args.dense_only:
            visual = self.model.single(changed)
            half = grid // 2      # the projector's tokens run down the columns
            coarse = targets.view(-1, half, 2, half, 2, 2 * N_CLASSES).mean((2, 4)).transpose(1, 2).reshape(len(pairs), half * half, -1)
            losses["token"] = F.binary_cross_entropy_with_logits(self.heads.tokens(visual).float(), coarse) * 8
            losses["position"] = position_loss(self.heads.position(visual).float())
            losses["caption"], losses["summary"] = self.caption_loss(visual, pairs)
            if args.questions and self.rng.random() < args.question_share:
                losses["question"] = self.question_loss(features, maps)
        return losses, len(pairs)

    def one_step(self):
        # Matrix products in bfloat16: 48 ms of processor time a pair against 67 (the processor had avx512_bf16).
        with torch.autocast("cpu", torch.bfloat16, enabled=not self.args.float32):
            losses, pairs = self.losses()
        dense = self.dense_weight()
        weight = {"caption": 1, "question": .15, "summary": 1, "position": .3}
        total = sum(loss.float() * weight.get(name, dense) for name, loss in losses.items())
        self.optimiser.zero_grad(set_to_none=False)
        total.backward()
        self.share_gradients()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.add_to_mean()
        self.step += 1
        self.seen += pairs * self.args.workers
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def add_to_mean(self):
        """The mean of the states at the end of a run captions better than any one of them (0.955 against 0.952 and 0.948)."""
        if self.rank or self.progress < self.args.average_from:
            return
        state = {n: t for n, t in self.model.state_dict().items() if t.is_floating_point()}
        if self.mean is None:
            self.mean = {n: torch.zeros_like(t) for n, t in state.items()}
        for name, tensor in state.items():
            self.mean[name] += tensor
        self.mean_of += 1

    def agree(self, stop):
        """The first process looks at the clock for all, or they would part ways at the stages' borders."""
        word = torch.tensor([self.clock_progress(), stop], dtype=torch.float64)
        if self.args.workers > 1:
            dist.broadcast(word, 0)
        self.progress = float(word[0])
        return self.progress < 1 and not word[1]

    def share_gradients(self):
        if self.args.workers == 1:
            return
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in self.parameters])
        dist.all_reduce(flat)
        flat /= self.args.workers
        for p, g in zip(self.parameters, flat.split([p.numel() for p in self.parameters])):
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            p.grad.copy_(g.view_as(p))

    # -- keeping and coming back -------------------------------------------------------------------------------

    def save(self, path):
        state = {"model": self.model.state_dict(), "heads": self.heads.state_dict(), "optimiser": self.optimiser.state_dict(),
                 "step": self.step, "net": self.net, "paused": self.paused, "seen": self.seen, "mean": self.mean, "mean_of": self.mean_of,
                 "config": vars(self.config), "args": {k: str(v) for k, v in vars(self.args).items()}}
        torch.save(state, f"{path}.tmp")
        os.replace(f"{path}.tmp", path)

    def resume(self, path):
        state = torch.load(path, weights_only=False)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        factors = [group["factor"] for group in self.optimiser.param_groups]
        self.optimiser.load_state_dict(state["optimiser"])
        for group, factor in zip(self.optimiser.param_groups, factors):   # an option, not a state
            group["factor"] = factor
        self.step, self.net, self.paused, self.seen = (state[k] for k in ("step", "net", "paused", "seen"))
        self.mean, self.mean_of = state.get("mean"), state.get("mean_of", 0)
        self.rng = self.batches.rng = random.Random(f"{self.args.seed}/{self.rank}/{self.step}")

    def run(self):
        args = self.args
        checkpoint, log = args.out / "checkpoint.pt", (args.out / "log.jsonl").open("a")
        if checkpoint.exists():
            self.resume(checkpoint)
        total = sum(p.numel() for p in self.model.parameters())
        if self.rank == 0:
            print(f"{total} parameters, {len(self.batches.shards.index)} scenes, {self.config.vocab} pieces, resuming at step {self.step}", flush=True)
        sums, saved = {}, time.monotonic()
        stop = []
        if self.rank == 0:
            signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
        while self.agree(bool(stop)):
            self.paused += dataset.wait_while_quiet(args.pause_file)
            began = time.monotonic()
            rate = self.set_rate()
            for name, value in self.one_step().items():
                sums.setdefault(name, []).append(value)
            self.net += time.monotonic() - began
            if self.step % args.log_every == 0 and self.rank == 0:
                line = {"step": self.step, "minutes": round(self.net / 60, 2), "paused": round(self.paused / 60, 2), "pairs": self.seen,
                        "pairs_s": round(self.seen / self.net, 1), "rate": round(rate, 6), "scenes": len(self.batches.shards.index),
                        "passes": self.batches.passes, **{k: round(sum(v) / len(v), 3) for k, v in sums.items()}}
                print(json.dumps(line), flush=True)
                log.write(json.dumps(line) + "\n")
                log.flush()
                sums = {}
            if self.rank == 0 and time.monotonic() - saved > 60 * args.save_every:
                self.save(checkpoint)
                saved = time.monotonic()
        if self.rank == 0:
            self.save(checkpoint)


def work(rank, args):
    if args.workers > 1:
        os.setsid()     # Linux shares processor time between sessions first; one session for all would starve beside many
        dist.init_process_group("gloo", init_method=f"file://{args.out.resolve()}/meeting", rank=rank, world_size=args.workers)
    Trainer(args, rank).run()


def clock(text):
    """"HH:MM" today, or tomorrow if that is past -> seconds since the epoch."""
    hour, minute = map(int, text.split(":"))
    now = time.time()
    then = time.mktime((*time.localtime(now)[:3], hour, minute, 0, 0, 0, -1))
    return then if then > now else then + 86400


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="folder of dataset.py render")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint.pt and log.jsonl; an old checkpoint is continued")
    parser.add_argument("--init", type=Path, help="model folder whose weights a new run starts from, instead of random ones")
    parser.add_argument("--start", type=Path, help="checkpoint whose weights (their mean, where it has one) and heads a new run starts from")
    parser.add_argument("--average-from", type=float, default=.6, help="share of the time after which the mean of the weights is kept")
    parser.add_argument("--minutes", type=float, default=70, help="training time, pauses not counted")
    parser.add_argument("--stop-at", type=clock, help="HH:MM, spread the schedule over the time until then instead")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4, help="processes of one thread each")
    parser.add_argument("--scenes", type=int, default=1, help="scenes a batch and worker; four images and four pairs each")
    parser.add_argument("--captions", type=int, default=2, help="captions a pair")
    parser.add_argument("--questions", type=int, default=4, help="images asked about, in the batches with questions")
    parser.add_argument("--question-share", type=float, default=.1, help="share of the batches with questions")
    parser.add_argument("--rate", type=float, default=1.2e-3)
    parser.add_argument("--llm-factor", type=float, default=2.5, help="the language model's learning rate over that of the rest")
    parser.add_argument("--decay", type=float, default=.03)
    parser.add_argument("--dense-only", type=float, default=.06, help="share of the time before the language model joins")
    parser.add_argument("--freeze-norm", type=float, default=.1, help="share of the time after which batch norm uses its running statistics")
    parser.add_argument("--dense-floor", type=float, default=.3)
    parser.add_argument("--confusable", action="store_true", help="show houses along a road, new or old, and changes in two places twice as often")
    parser.add_argument("--float32", action="store_true", help="matrix products in float32 instead of bfloat16")
    parser.add_argument("--pause-file", help="wait while this file exists")
    parser.add_argument("--log-every", type=int, default=25)
    parser.add_argument("--save-every", type=float, default=3, help="minutes")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "meeting").unlink(missing_ok=True)
    if args.workers > 1:
        mp.start_processes(work, (args,), nprocs=args.workers, start_method="spawn")
    else:
        work(0, args)


if __name__ == "__main__":
    main()
