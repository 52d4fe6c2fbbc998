"""Sentences about events: the grammar, the prompts, and the way back from a sentence to what it says.

One object has one noun, one direction has its own verbs, and the place is nearly always said, always by the same
nine phrases: whatever the pixels decide, the words decide too.  Sentences follow LEVIR-CC: lower case, present
tense or present perfect, no final full stop.
"""

import random
import re
from dataclasses import replace

from scenes import ACROSS

# The closed list: a caption is "no change" if and only if it is one of these.  config.json of the model has a copy.
NO_CHANGE = ("the scene is the same as before", "there is no difference", "the two scenes seem identical",
             "no change has occurred", "almost nothing has changed")

SYSTEM = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
          "detailed, and polite answers to the user's questions.")
QUESTIONS = ("Please briefly describe the main changes between the above two remote sensing images.",
             "Describe the changes between the two images.",
             "What has changed between the two images?")
PRESENCE_NOUNS = ("house", "building", "road", "tree", "pond")
PRESENCE_QUESTIONS = ("Is there a {} in the image?", "Is there a {}?", "Are there any {}s in the image?")

PLACES = ("in the top left corner", "at the top", "in the top right corner", "on the left", "in the middle", "on the right",
          "in the bottom left corner", "at the bottom", "in the bottom right corner", "across the scene")

SYMMETRIES = [(t, x, y) for t in (0, 1) for x in (0, 1) for y in (0, 1)]   # transpose, then mirror columns, then rows


def move_place(place, symmetry):
    if place == ACROSS:
        return place
    row, column = divmod(place, 3)
    transpose, mirror_x, mirror_y = symmetry
    if transpose:
        row, column = column, row
    if mirror_x:
        column = 2 - column
    if mirror_y:
        row = 2 - row
    return row * 3 + column


def seen_as(events, symmetry=(0, 0, 0), backwards=False):
    """The events as they look under a symmetry of the square, or with the dates swapped."""
    return [replace(e, place=move_place(e.place, symmetry), sign=-e.sign if backwards else e.sign) for e in events]


# Removed vegetation first, then what is built: the order in which one would tell it.
_ORDER = {"tree": 0, "bareland": 1, "road": 2, "building": 3, "house": 4, "pond": 5}


def _pick(rng, *weighted):
    return rng.choices(weighted[::2], weighted[1::2])[0]


def _noun(event, rng):
    """(noun phrase, is it plural)."""
    n = event.count
    if event.kind == "house":
        if event.row and rng.random() < .6:
            return "a row of houses", False
        if n <= 3:
            return (("a house", False), ("two houses", True), ("three houses", True))[n - 1]
        return ("several houses" if n <= 7 else "many houses"), True
    if event.kind == "building":
        return ("a large building", False) if n == 1 else ("two large buildings", True)
    if event.kind == "tree":
        return ("some trees" if n < 45 else "many trees"), True
    if event.kind == "bareland":
        return "bare land", False
    return ("a road", False) if event.kind == "road" else ("a pond", False)


def _verb(event, plural, rng, perfect):
    """`perfect` is the weight of "has been ..."; 0 where the sentence has one already, so that none repeats itself."""
    be, have, s = ("are", "have", "") if plural else ("is", "has", "s")
    if event.sign > 0:
        if event.kind == "tree":
            return _pick(rng, f"{be} planted", .5, f"appear{s}", .5)
        if event.kind in ("bareland", "pond"):
            return f"appear{s}"
        return _pick(rng, f"{be} built", .6, f"{have} been built", perfect, f"appear{s}", .2)
    if event.kind == "tree":
        return _pick(rng, f"{be} removed", .7, f"{be} cut down", .3)
    if event.kind in ("bareland", "pond"):
        return f"disappear{s}"
    return _pick(rng, f"{be} removed", .6, f"{have} been removed", perfect, f"disappear{s}", .2)


def caption(events, rng, say_place=.97):
    """One sentence for a list of events."""
    if not events:
        return _pick(rng, *sum(zip(NO_CHANGE, (.4, .2, .15, .15, .1)), ()))
    built_on = any(e.on_bareland and e.sign > 0 for e in events)
    told = [e for e in events if not (built_on and e.kind == "bareland")]
    told.sort(key=lambda e: (_ORDER[e.kind] if e.sign < 0 or e.kind in ("road", "building", "house", "pond") else 9))
    shared = len({e.place for e in told}) == 1 and len(told) > 1
    clauses = []
    for event in told:
        noun, plural = _noun(event, rng)
        words = [noun, _verb(event, plural, rng, 0 if " been " in " ".join(clauses) else .2)]
        if event.on_bareland and event.sign > 0:
            words.append("on the bare land")
        elif event.along_road and rng.random() < .3:
            words.append("along the road")
        if not shared and rng.random() < say_place:
            words.append(PLACES[event.place])
        clauses.append(" ".join(words))
    sentence = " and ".join(clauses)
    if shared and rng.random() < say_place:
        sentence += " " + PLACES[told[0].place]
    return sentence


def references(events, count, rng):
    """`count` sentences, different ones as far as the grammar has them."""
    out = []
    for _ in range(count * 4):
        sentence = caption(events, rng)
        if sentence not in out:
            out.append(sentence)
        if len(out) == count:
            return out
    return out + [rng.choice(out) for _ in range(count - len(out))]


def presence_qa(present, rng):
    """A question about one image, and its answer; `present` is the set of nouns that are in it."""
    wanted = [n for n in PRESENCE_NOUNS if (n in present) == (rng.random() < .5)] or list(PRESENCE_NOUNS)
    noun = rng.choice(wanted)
    return rng.choice(PRESENCE_QUESTIONS).format(noun), "yes" if noun in present else "no"


# -- the way back ------------------------------------------------------------------------------------------------

_KIND_WORDS = {"house": r"\bhouses?\b", "building": r"\bbuildings?\b", "road": r"\ba road\b", "tree": r"\btrees?\b",
               "bareland": r"\bbare land\b", "pond": r"\bpond\b"}
_BUILT = re.compile(r"\b(built|appears?|planted)\b")
_REMOVED = re.compile(r"\b(removed|disappears?|cut down)\b")
_COUNTS = (("a house", (1, 1)), ("two houses", (2, 2)), ("three houses", (3, 3)), ("several houses", (4, 7)),
           ("many houses", (8, 999)), ("a row of houses", (4, 999)))


def is_no_change(sentence):
    return sentence.strip() in NO_CHANGE


def kinds_in(sentence):
    return {kind for kind, words in _KIND_WORDS.items() if re.search(words, sentence)}


def parse(sentence):
    """What a sentence claims: {kind: (sign or 0, place or None)}.  A place at the very end holds for every clause
    without one of its own."""
    clauses = sentence.split(" and ")
    places = [next((i for i, words in enumerate(PLACES) if re.search(re.escape(words) + r"(?!\w)", c)), None) for c in clauses]
    claims = {}
    for clause, place in zip(clauses, places):
        sign = bool(_BUILT.search(clause)) - bool(_REMOVED.search(clause))
        where = place if place is not None else places[-1]
        for kind in kinds_in(clause):
            claims[kind] = (-sign if kind == "bareland" and "on the bare land" in clause else sign, where)
    return claims


def house_range(sentence):
    """(least, most) number of houses a sentence speaks of, or None."""
    return next((bounds for words, bounds in _COUNTS if re.search(rf"\b{words}\b", sentence)), None)


def repeats(sentence):
    """True where three words in a row come twice, or one noun phrase is said twice."""
    # "... in the top left corner and ... in the top right corner" is two places, not a repetition.
    plain = sentence
    for i, place in enumerate(PLACES):
        plain = re.sub(re.escape(place) + r"(?!\w)", f"@{i}", plain)
    words = plain.split()
    grams = [tuple(words[i:i + 3]) for i in range(len(words) - 2)]
    nouns = re.findall(r"\b(houses?|buildings?|trees?|pond|bare land|a road)\b", plain)
    nouns = [n.rstrip("s") for n in nouns]
    doubled = any(a == b for a, b in zip(words, words[1:]))
    return doubled or len(set(grams)) != len(grams) or len(set(nouns)) != len(nouns)
