"""Scores of captions against the events they should tell, and CIDEr-D against reference sentences."""

import math
from collections import Counter

import captions
from scenes import ACROSS


def _ngrams(words):
    return [Counter(tuple(words[i:i + n]) for i in range(len(words) - n + 1)) for n in (1, 2, 3, 4)]


def cider_d(hypotheses, references):
    """Corpus CIDEr-D: hypotheses is a list of sentences, references a list of lists."""
    ref_grams = [[_ngrams(r.split()) for r in refs] for refs in references]
    frequency = Counter()
    for refs in ref_grams:
        frequency.update({g for grams in refs for level in grams for g in level})
    log_count = math.log(len(hypotheses)) if len(hypotheses) > 1 else 1.0

    def vector(grams):
        levels = [{g: c * (log_count - math.log(max(1, frequency[g]))) for g, c in level.items()} for level in grams]
        return levels, [math.sqrt(sum(v * v for v in level.values())) for level in levels], sum(grams[1].values())

    total = 0.0
    for hypothesis, refs in zip(hypotheses, ref_grams):
        levels, norms, length = vector(_ngrams(hypothesis.split()))
        score = 0.0
        for grams in refs:
            ref_levels, ref_norms, ref_length = vector(grams)
            for level, norm, ref_level, ref_norm in zip(levels, norms, ref_levels, ref_norms):
                alike = sum(min(v, ref_level[g]) * ref_level[g] for g, v in level.items() if g in ref_level)
                if norm and ref_norm:
                    alike /= norm * ref_norm
                score += alike * math.exp(-(length - ref_length) ** 2 / 72)
        total += 10 * score / (4 * len(refs))
    return total / len(hypotheses)


def apart(a, b):
    """King's moves between two places; ACROSS is near nothing but itself."""
    if a == b:
        return 0
    if ACROSS in (a, b):
        return 9
    return max(abs(a // 3 - b // 3), abs(a % 3 - b % 3))


def score(sentences, events, references=None):
    """Figures for a list of captions; `events` lists the true events of every pair.

    objects_*   over all pairs: kinds named against kinds true (a kind named for an unchanged pair counts as wrong)
    direction   of the kinds named rightly: built or removed told rightly
    place_*     of the kinds named rightly: the place told; a caption that says no place counts as wrong
    """
    hit = said = true = 0
    per_kind = {}
    direction, distance, counts = [], [], []
    for sentence, real in zip(sentences, events):
        kinds, claims = {e.kind for e in real}, captions.parse(sentence)
        said, true, hit = said + len(claims), true + len(kinds), hit + len(kinds & set(claims))
        for kind in kinds | set(claims):
            tally = per_kind.setdefault(kind, [0, 0, 0])
            tally[0] += kind in kinds and kind in claims
            tally[1] += kind in claims
            tally[2] += kind in kinds
        for event in real:
            if event.kind not in claims:
                continue
            sign, place = claims[event.kind]
            direction.append(sign == event.sign)
            distance.append(9 if place is None else apart(place, event.place))
            bounds = captions.house_range(sentence) if event.kind == "house" else None
            if bounds:
                counts.append(bounds[0] <= event.count <= bounds[1])
    mean = lambda values: sum(values) / len(values) if values else float("nan")
    f1 = lambda t: 2 * t[0] / max(1, t[1] + t[2])
    figures = {
        "pairs": len(sentences),
        "change": mean([captions.is_no_change(s) != bool(e) for s, e in zip(sentences, events)]),
        "objects_f1": f1((hit, said, true)),
        "direction": mean(direction),
        "place_within_one": mean([d <= 1 for d in distance]),
        "place_exact": mean([d == 0 for d in distance]),
        "house_count": mean(counts),
        "repetitions": sum(map(captions.repeats, sentences)),
        "per_kind_f1": {k: round(f1(t), 3) for k, t in sorted(per_kind.items())},
    }
    if references:
        figures["cider_d"] = cider_d(sentences, references)
    return figures
