"""The model's tokenizer: trained here with SentencePiece, used by the rules of the Llama tokenizer (legacy = false).

Those rules differ from SentencePiece's own: a chunk of text gets exactly one leading space marker, and text cut by
<image> is encoded chunk by chunk.  So the chunk before the image ends in a lone marker (of the space after "USER:"),
and the chunk after it begins with a marker and the byte piece of the newline.
"""

import random
from pathlib import Path

import sentencepiece as spm

import captions
from scenes import make_scene

MARKER = "\u2581"
UNK, BOS, EOS = 0, 1, 2


def corpus(first_seed, scenes=4000):
    rng = random.Random(1)
    lines = []
    for seed in range(first_seed, first_seed + scenes):
        events = captions.seen_as(make_scene(seed).events, rng.choice(captions.SYMMETRIES), rng.random() < .4)
        lines.append(captions.caption(events, rng))
    lines += [s for s in captions.NO_CHANGE for _ in range(200)]
    lines += [f"USER: {q} ASSISTANT: " for q in captions.QUESTIONS for _ in range(200)]
    lines += [q.format(n) + " ASSISTANT: " + a for q in captions.PRESENCE_QUESTIONS for n in captions.PRESENCE_NOUNS
              for a in ("yes", "no") for _ in range(20)]
    lines += [captions.SYSTEM + " USER: "] * 300
    return lines


def train(path, first_seed):
    """Trains tokenizer.model at `path`: the largest vocabulary the corpus can fill, as it is small."""
    path = Path(path)
    text = path.with_suffix(".txt")
    text.write_text("\n".join(corpus(first_seed)))
    for size in (640, 608, 576, 544, 512, 480, 448):
        try:
            spm.SentencePieceTrainer.train(
                input=str(text), model_prefix=str(path.with_suffix("")), vocab_size=size, model_type="bpe", byte_fallback=True,
                normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, character_coverage=1.0,
                unk_id=UNK, bos_id=BOS, eos_id=EOS, pad_id=-1, num_threads=1, minloglevel=2)
            return size
        except RuntimeError:
            continue
    raise RuntimeError("the corpus is too small for a tokenizer")


class Tokenizer:
    def __init__(self, path):
        self.pieces = spm.SentencePieceProcessor(model_file=str(path))
        self.size = self.pieces.get_piece_size()
        self._kept = {}

    def chunk(self, text):
        """Ids of one chunk without BOS: one marker in front, nothing else added.  SentencePiece's own dummy prefix is
        that marker; the rules differ only where special tokens stand in the text, and ours never has them."""
        return self.pieces.encode(text.replace(MARKER, " ")) if text else []

    def prompt(self, question):
        """(ids before the image, ids after it) of the one-turn prompt."""
        before, after = f"{captions.SYSTEM} USER: <image>\n{question} ASSISTANT:".split("<image>")
        return [BOS] + self.chunk(before), self.chunk(after)

    def answer(self, text):
        if text not in self._kept:
            self._kept[text] = self.chunk(text) + [EOS]
        return self._kept[text]

    def decode(self, ids):
        ids = [int(i) for i in ids]
        if EOS in ids:
            ids = ids[:ids.index(EOS)]
        return self.pieces.decode([i for i in ids if i > EOS]).strip()
