"""python -m unittest test_captions"""

import random
import unittest

import numpy as np

import captions
import dataset
import metrics
from captions import PLACES, SYMMETRIES
from scenes import ACROSS, Event, make_scene, place_of


class Captions(unittest.TestCase):
    def test_every_caption_reads_back_as_its_events(self):
        rng = random.Random(5)
        for seed in range(300):
            for backwards in (False, True):
                events = captions.seen_as(make_scene(seed).events, rng.choice(SYMMETRIES), backwards)
                sentence = captions.caption(events, rng, say_place=1)
                told = captions.parse(sentence)
                self.assertEqual(told, {e.kind: (e.sign, e.place) for e in events}, sentence)
                self.assertFalse(captions.repeats(sentence), sentence)
                self.assertFalse(captions.is_no_change(sentence))

    def test_no_change_is_the_closed_list(self):
        rng = random.Random(1)
        self.assertEqual({captions.caption([], rng) for _ in range(500)}, set(captions.NO_CHANGE))
        self.assertFalse(captions.is_no_change("the scene is the same"))

    def test_repetition_is_found(self):
        for bad in ("a house a house is built", "many many houses appear", "a house is built on the left and a house is built on the left",
                    "trees are removed and some trees are removed"):
            self.assertTrue(captions.repeats(bad), bad)
        self.assertFalse(captions.repeats("a road is built in the top left corner and a pond appears in the top right corner"))

    def test_places_move_with_the_picture(self):
        grid = np.arange(9).reshape(3, 3)
        for symmetry in SYMMETRIES:
            moved = dataset.turn(grid, symmetry)
            for place in range(9):
                row, column = np.argwhere(moved == place)[0]
                self.assertEqual(captions.move_place(place, symmetry), row * 3 + column)
            self.assertEqual(captions.move_place(ACROSS, symmetry), ACROSS)

    def test_corner_phrases_are_not_taken_for_sides(self):
        for place, words in enumerate(PLACES):
            self.assertEqual(captions.parse(f"a house is built {words}")["house"][1], place)


class Scenes(unittest.TestCase):
    def test_place_rule(self):
        self.assertEqual(place_of([(20, 20)]), 0)
        self.assertEqual(place_of([(128, 230)]), 7)
        self.assertIsNone(place_of([(86, 128)]))                       # on the line between two cells
        self.assertEqual(place_of([(10, 10), (250, 250)]), ACROSS)
        self.assertEqual(place_of([(10, 128), (250, 128)]), 4)         # long in one direction only

    def test_a_seed_is_a_scene(self):
        self.assertEqual(make_scene(77).events, make_scene(77).events)


class Scores(unittest.TestCase):
    def test_score_counts_what_is_wrong(self):
        house = Event("house", 1, 2, 0)
        figures = metrics.score(["two houses are built in the top left corner", "a house is removed at the top", "there is no difference",
                                 "a road is built on the left"], [[house], [house], [house], []])
        self.assertEqual(figures["change"], .5)
        self.assertEqual(figures["direction"], .5)
        self.assertEqual((figures["place_exact"], figures["place_within_one"]), (.5, 1))
        self.assertAlmostEqual(figures["objects_f1"], 2 * 2 / (3 + 3))

    def test_cider_of_the_reference_itself(self):
        refs = [["a b c d e"], ["f g h i j"], ["k l m n o"]]
        self.assertAlmostEqual(metrics.cider_d([r[0] for r in refs], refs), 10, places=6)
        self.assertEqual(metrics.cider_d(["x y z", "x y z", "x y z"], refs), 0)


if __name__ == "__main__":
    unittest.main()
