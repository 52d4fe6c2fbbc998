"""Pixels of a scene: one date of it, under one look.

A look is everything that differs between two dates without being a change: sun, shadows, season, tint, haze, a
small shift, the tilt of the camera, how bright roofs are and now and then a new roof, parked cars and other small
things that come and go, blur, noise, JPEG.  It has its own seed, so the same scene can be seen twice on one date.

Shapes are drawn flat at twice the size and reduced, which smooths the edges; texture is then added per class from
a bank of noise made once.  `render` also gives the class of every pixel, for the dense losses of the training.
"""

import io
import math
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from scenes import BOTH, BUILDING_ROOFS, FRAME, HOUSE_ROOFS, rotate

SIZE = 256
SCALE = 2
CLASSES = ("ground", "road", "house", "building", "tree", "pond", "bareland", "paved")
GROUND, ROAD, HOUSE, BUILDING, TREE, POND, BARE, PAVED = range(8)

# Strength of the slow and of the fine texture, per class.
SLOW = np.array([.12, .03, .02, .015, .05, .02, .06, .03], np.float32)
FINE = np.array([.085, .03, .05, .03, .20, .02, .06, .03], np.float32)

CAR_COLOURS = ((232, 232, 232), (40, 40, 44), (150, 34, 34), (62, 82, 130), (182, 182, 186), (92, 92, 92))


def _noise_bank(octaves, count, rng, side=512):
    bank = []
    for _ in range(count):
        total = np.zeros((side, side), np.float32)
        for cells, weight in octaves:
            grid = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
            total += weight * np.asarray(grid.resize((side, side), Image.BICUBIC))
        bank.append((total - total.mean()) / total.std())
    return bank


_bank_rng = np.random.default_rng(7)
_SLOW_BANK = _noise_bank(((5, 1), (11, .8), (24, .6), (60, .4)), 16, _bank_rng)
_FINE_BANK = _noise_bank(((60, .5), (140, .8), (300, .8), (512, .6)), 16, _bank_rng)


def _noise(bank, rng, size):
    field = bank[rng.randrange(len(bank))]
    x, y = rng.randrange(512 - size), rng.randrange(512 - size)
    field = field[y:y + size, x:x + size]
    if rng.random() < .5:
        field = field[::-1]
    return field.T if rng.random() < .5 else field


def rectangle(x, y, width, depth, angle):
    return [(x + du, y + dv) for du, dv in (rotate(angle, su * width / 2, sv * depth / 2)
                                            for su, sv in ((-1, -1), (1, -1), (1, 1), (-1, 1)))]


def shade(colour, factor):
    return tuple(int(min(255, max(0, c * factor))) for c in colour)


class Look:
    """What one date adds by itself."""

    def __init__(self, seed):
        self.rng = rng = random.Random(f"look/{seed}")
        self.sun = rng.uniform(0, 2 * math.pi)
        self.shadow = rng.uniform(0.4, 1.9)            # shadow length per height
        self.shadow_depth = rng.uniform(0.45, 0.75)
        self.season = rng.uniform(-1, 1)               # -1 straw, +1 lush
        self.dx, self.dy = rng.uniform(-2, 2), rng.uniform(-2, 2)
        self.cars = rng.choice((0, 1, 1, 2))
        self.tree_tone = rng.uniform(0.6, 1.3)
        self.bare = rng.uniform(.3, .9) if rng.random() < .12 else 0.0   # how leafless the trees are
        self.region_season = [rng.gauss(0, 0.35) for _ in range(12)]
        self.tilt = [rng.uniform(-.3, .3) for _ in range(2)]   # how far a roof stands off its footprint, per height
        self.roof_gain = math.exp(rng.gauss(0, .12))
        self.clutter = rng.choice((0, 0, 2, 4, 8))             # small things that are here today only

    def grass(self, colour, region=0):
        """A ground colour under this season: towards straw or towards green, darker when lush."""
        k = max(-1.2, min(1.2, self.season + self.region_season[region % 12]))
        to = (148, 132, 98) if k < 0 else (72, 88, 52)
        mix = abs(k) * 0.42
        return tuple(int(c * (1 - mix) + t * mix + self.rng.gauss(0, 2)) for c, t in zip(colour, to))

    def roof(self, colour, others, renewed):
        """A roof's colour under this light; with the probability `renewed` another one altogether."""
        if self.rng.random() < renewed:
            colour = self.rng.choice(others)
        gain = self.roof_gain * math.exp(self.rng.gauss(0, .05))
        return tuple(min(255.0, c * gain) for c in colour)

    def plain(self, colour):
        shift = self.rng.gauss(0, 5)
        return tuple(int(min(255, max(0, c + shift + self.rng.gauss(0, 2)))) for c in colour)


class Painter:
    def __init__(self, scene, phase, look):
        self.look = look
        self.scene = scene
        self.side = SIZE * SCALE
        self.image = Image.new("RGB", (self.side, self.side), look.grass(scene.ground))
        self.draw = ImageDraw.Draw(self.image)
        self.classes = Image.new("L", (SIZE, SIZE), GROUND)
        self.mark = ImageDraw.Draw(self.classes)
        self.phase = phase
        fixed = random.Random(f"fixed/{scene.seed}")   # details of the scene itself, the same on both dates
        self.fences, self.lawns, self.pitch = fixed.random() < .7, fixed.random() < .75, fixed.uniform(5, 11)
        self.paving = [fixed.choice(((108, 108, 110), (132, 130, 126), (164, 158, 148))) for _ in range(4)]

    def here(self, things):
        return [t for t in things if t.phase in (BOTH, self.phase)]

    def big(self, points):
        dx, dy = self.look.dx, self.look.dy
        return [((x + dx) * SCALE, (y + dy) * SCALE) for x, y in points]

    def small(self, points):
        dx, dy = self.look.dx, self.look.dy
        return [(x + dx, y + dy) for x, y in points]

    def shape(self, points, colour, label=None):
        self.draw.polygon(self.big(points), fill=tuple(int(c) for c in colour))
        if label is not None:
            self.mark.polygon(self.small(points), fill=label)

    def line(self, points, colour, width, label=None):
        self.draw.line(self.big(points), fill=tuple(int(c) for c in colour), width=max(1, int(width * SCALE)), joint="curve")
        if label is not None:
            self.mark.line(self.small(points), fill=label, width=max(1, int(width)), joint="curve")

    def disc(self, x, y, radius, colour, label=None):
        (bx, by), = self.big([(x, y)])
        r = radius * SCALE
        self.draw.ellipse((bx - r, by - r, bx + r, by + r), fill=tuple(int(c) for c in colour))
        if label is not None:
            (sx, sy), = self.small([(x, y)])
            self.mark.ellipse((sx - radius, sy - radius, sx + radius, sy + radius), fill=label)

    # -- layers, from the ground up ----------------------------------------------------------------------------

    def ground(self):
        region = 1
        for blob in self.here(self.scene.blobs):
            if blob.kind == "patch":
                self.shape(blob.points, self.look.grass(blob.tone, region))
                region += 1
        if self.scene.furrows is not None:
            base, pitch = self.look.grass(self.scene.ground), self.pitch
            for k in range(-32, 33):
                a, b = rotate(self.scene.furrows, k * pitch, -260), rotate(self.scene.furrows, k * pitch, 260)
                self.line([(128 + a[0], 128 + a[1]), (128 + b[0], 128 + b[1])], shade(base, .87), pitch * .45)
        for blob in self.here(self.scene.blobs):
            if blob.kind == "bareland":
                self.shape(blob.points, self.look.plain(blob.tone), BARE)

    def ponds(self):
        for blob in self.here(self.scene.blobs):
            if blob.kind == "pond":
                self.shape(blob.points, self.look.plain(blob.tone), POND)
                self.line(list(map(tuple, blob.points)) + [tuple(blob.points[0])], self.look.plain((112, 106, 86)), 1.5)

    def roads(self):
        surface = {"asphalt": (106, 106, 108), "concrete": (168, 163, 154), "dirt": (186, 166, 130)}
        roads = [(r, [tuple(p) for p in r.points]) for r in self.here(self.scene.roads)]
        for road, points in roads:                       # kerbs first, so that crossings stay open
            if road.surface != "dirt":
                self.line(points, self.look.plain((182, 176, 166)), road.width + 4)
            self.mark.line(self.small(points), fill=ROAD, width=int(road.width + 2), joint="curve")
            if road.dead_end:
                self.disc(*points[-1], road.width * 1.25 + 2, (182, 176, 166), ROAD)
        for road, points in roads:
            colour = self.look.plain(surface[road.surface])
            self.line(points, colour, road.width)
            if road.dead_end:
                self.disc(*points[-1], road.width * 1.25, colour)
            if road.surface == "asphalt" and road.width > 15:
                self.line(points, (190, 184, 150), 0.5)
            for _ in range(self.look.rng.randint(0, 2 * self.look.cars) if road.surface != "dirt" else 0):
                i = self.look.rng.randrange(len(points) - 1)
                (x0, y0), (x1, y1) = points[i], points[i + 1]
                angle = math.atan2(y1 - y0, x1 - x0)
                ox, oy = rotate(angle, 0, self.look.rng.choice((-1, 1)) * road.width * .27)
                self.car(x0 + ox, y0 + oy, angle)

    def car(self, x, y, angle):
        self.shape(rectangle(x, y, 8.5, 4.2, angle), self.look.rng.choice(CAR_COLOURS))

    def lots(self):
        for lot in self.here(self.scene.lots):
            tone = self.look.plain(self.paving[int(lot.x) % 4])
            self.shape(rectangle(lot.x, lot.y, lot.width, lot.depth, lot.angle), tone, PAVED)
            full = self.look.rng.uniform(0, .7)
            for v in np.arange(-lot.depth / 2 + 7, lot.depth / 2 - 4, 16):
                for u in np.arange(-lot.width / 2 + 4, lot.width / 2 - 3, 6):
                    x, y = rotate(lot.angle, u, v)
                    if self.look.rng.random() < full:
                        self.car(lot.x + x, lot.y + y, lot.angle + math.pi / 2)
                    else:
                        ex, ey = rotate(lot.angle, 0, 4.5)
                        self.line([(lot.x + x - ex, lot.y + y - ey), (lot.x + x + ex, lot.y + y + ey)], shade(tone, 1.3), 0.5)
        for building in self.here(self.scene.buildings):  # a paved rim around every building
            for x, y, w, d in self.parts(building):
                self.shape(rectangle(x, y, w + 9, d + 9, building.angle), self.look.plain((158, 152, 144)), PAVED)

    def yards(self):
        lawn = self.look.grass((86, 98, 62), 11)
        houses = self.here(self.scene.houses)
        for h in houses:
            yard = rectangle(h.x, h.y, h.width + 15, h.depth + 22, h.angle)
            if self.lawns:
                self.shape(yard, lawn)
            if self.fences:
                self.line(yard + yard[:1], shade(lawn, .72), 1)
        for h in houses:
            if h.drive:
                dx, dy = h.drive[0] - h.x, h.drive[1] - h.y
                ox, oy = rotate(h.angle, h.width * .22 * (1 if h.hip else -1), 0)
                self.line([(h.x + ox, h.y + oy), (h.x + ox + dx, h.y + oy + dy)], self.look.plain((186, 180, 170)), 7)
                if self.look.rng.random() < .25 * self.look.cars:
                    self.car(h.x + ox + dx * .62, h.y + oy + dy * .62, math.atan2(dy, dx))

    def clutter(self):
        """Containers, heaps, dug-up spots, single shrubs: far too small to be a change."""
        rng = self.look.rng
        for _ in range(self.look.clutter):
            x, y, size = rng.uniform(0, FRAME), rng.uniform(0, FRAME), rng.uniform(3, 8)
            draw = rng.random()
            if draw < .4:
                self.shape(rectangle(x, y, size, size * rng.uniform(.4, 1), rng.uniform(0, math.pi)), rng.choice(CAR_COLOURS))
            elif draw < .7:
                self.disc(x, y, size * .8, self.look.plain((176, 156, 122)))
            else:
                self.disc(x, y, size * .6, shade((64, 76, 50), self.look.tree_tone))

    def walls(self, thing, colour):
        """The sides that a tilted camera sees between the footprint and the roof; -> the roof's offset."""
        ox, oy = (t * thing.height for t in self.look.tilt)
        for x, y, w, d in self.parts(thing):
            for k in (0, 1 / 3, 2 / 3):
                self.shape(rectangle(x + k * ox, y + k * oy, w, d, thing.angle), shade(colour, .72))
        return ox, oy

    @staticmethod
    def parts(thing):
        """The rectangles (x, y, width, depth) that make up a building or a house."""
        if hasattr(thing, "parts"):
            shares = thing.parts
        else:
            shares = [(0, 0, 1, 1)]
            if thing.wing:
                side, end, w, d = thing.wing
                shares = shares + [(side * .25, end * .45, w, d)]
        out = []
        for u, v, w, d in shares:
            dx, dy = rotate(thing.angle, u * thing.width, v * thing.depth)
            out.append((thing.x + dx, thing.y + dy, w * thing.width, d * thing.depth))
        return out

    def shadows(self):
        """Casts all shadows at once: overlapping ones must not darken twice."""
        mask = Image.new("L", (self.side, self.side), 0)
        draw = ImageDraw.Draw(mask)
        sx, sy = math.cos(self.look.sun), math.sin(self.look.sun)
        deep = int(255 * self.look.shadow_depth)
        for thing in self.here(self.scene.houses) + self.here(self.scene.buildings):
            reach = thing.height * self.look.shadow
            for x, y, w, d in self.parts(thing):
                for k in (1 / 3, 2 / 3, 1):
                    draw.polygon(self.big(rectangle(x + sx * reach * k, y + sy * reach * k, w, d, thing.angle)), fill=deep)
        for grove in self.here(self.scene.trees):
            for x, y, r, _ in grove.discs.tolist():
                (bx, by), = self.big([(x + sx * r * .6 * self.look.shadow, y + sy * r * .6 * self.look.shadow)])
                draw.ellipse((bx - r * SCALE, by - r * SCALE, bx + r * SCALE, by + r * SCALE), fill=int(deep * .85))
        dark = self.image.point([int(v * .3) for v in range(256)] * 3)
        self.image.paste(dark, (0, 0), mask)
        self.draw = ImageDraw.Draw(self.image)

    def trees(self):
        sx, sy = math.cos(self.look.sun), math.sin(self.look.sun)
        lush = 1 + .22 * self.look.season
        for grove in self.here(self.scene.trees):
            for x, y, r, tone in grove.discs.tolist():
                k = tone * self.look.tree_tone
                colour = [c * (1 - self.look.bare) + b * self.look.bare
                          for c, b in zip((56 * k / lush, 68 * k, 44 * k), (104 * k, 94 * k, 78 * k))]
                self.disc(x, y, r, shade(colour, .8), TREE)
                self.disc(x - sx * r * .3, y - sy * r * .3, r * .62, shade(colour, 1.22))

    def slope(self, normal):
        """Brightness of a roof face that looks towards `normal`; the sun stands opposite to the shadows."""
        return 1 - .22 * math.cos(normal - self.look.sun) * min(1.3, self.look.shadow)

    def roof(self, x, y, width, depth, angle, colour, hip):
        """A ridge roof: two long faces, and two short ones where it is a hip roof."""
        if width < depth:
            width, depth, angle = depth, width, angle + math.pi / 2
        a, b, c, d = rectangle(x, y, width, depth, angle)
        half = width / 2 - (depth / 2 if hip else 0)
        ux, uy = rotate(angle, half, 0)
        left, right = (x - ux, y - uy), (x + ux, y + uy)
        faces = (((a, b, right, left), angle - math.pi / 2), ((c, d, left, right), angle + math.pi / 2),
                 ((b, c, right), angle), ((d, a, left), angle + math.pi))
        for face, normal in faces:
            self.shape(face, shade(colour, self.slope(normal)))

    def houses(self):
        for h in self.here(self.scene.houses):
            colour = self.look.roof(h.roof, HOUSE_ROOFS, .02)
            ox, oy = self.walls(h, (150, 142, 132))
            for x, y, w, d in self.parts(h):
                self.mark.polygon(self.small(rectangle(x, y, w, d, h.angle)), fill=HOUSE)
                self.roof(x + ox, y + oy, w, d, h.angle, colour, h.hip)

    def buildings(self):
        sx, sy = math.cos(self.look.sun), math.sin(self.look.sun)
        for b in self.here(self.scene.buildings):
            colour = self.look.roof(b.roof, BUILDING_ROOFS, .05)
            ox, oy = self.walls(b, (164, 160, 154))
            for i, (x, y, w, d) in enumerate(self.parts(b)):
                self.mark.polygon(self.small(rectangle(x, y, w, d, b.angle)), fill=BUILDING)
                x, y = x + ox, y + oy
                corners = rectangle(x, y, w, d, b.angle)
                self.shape(corners, shade(colour, .96 + .05 * i))
                if b.ridge:
                    self.roof(x, y, w, d, b.angle, colour, False)
                self.line(corners + corners[:1], shade(colour, .8), 1)
            px, py, pw, pd = self.parts(b)[0]
            px, py = px + ox, py + oy
            for u, v, size in b.units:
                dx, dy = rotate(b.angle, u * pw, v * pd)
                self.shape(rectangle(px + dx + sx * 2, py + dy + sy * 2, size, size, b.angle), shade(colour, .6))
                self.shape(rectangle(px + dx, py + dy, size, size, b.angle), shade(colour, .88))

    def paint(self):
        for layer in (self.ground, self.ponds, self.roads, self.lots, self.yards, self.clutter, self.shadows, self.trees, self.houses, self.buildings):
            layer()
        return self.image.reduce(SCALE), np.asarray(self.classes)


def _weather(image, look):
    """Optics and storage: blur or sharpening, then sometimes JPEG."""
    rng = look.rng
    draw = rng.random()
    if draw < .35:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(.3, 1.0)))
    elif draw < .55:
        image = image.filter(ImageFilter.UnsharpMask(1, rng.randint(30, 120), 0))
    if rng.random() < .35:
        packed = io.BytesIO()
        image.save(packed, "JPEG", quality=rng.randint(40, 92))
        image = Image.open(packed).convert("RGB")
    return image


def render(scene, phase, look_seed):
    """(image [256, 256, 3] uint8, class of each pixel [256, 256] uint8)."""
    look = Look(look_seed)
    flat, classes = Painter(scene, phase, look).paint()
    pixels = np.asarray(flat, np.float32)
    fixed = random.Random(f"texture/{scene.seed}")
    slow = _noise(_SLOW_BANK, fixed, SIZE)
    fine = .75 * _noise(_FINE_BANK, fixed, SIZE) + .5 * _noise(_FINE_BANK, look.rng, SIZE)
    gain = 1 + SLOW[classes] * slow + FINE[classes] * fine * look.rng.uniform(.6, 1.3)
    warm = (slow * (classes == GROUND)) * .03     # dry and lush spots differ in hue, not only in brightness
    pixels = np.stack([pixels[..., 0] * (gain + warm), pixels[..., 1] * gain, pixels[..., 2] * (gain - warm)], -1)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return np.asarray(_weather(image, look)), classes


def expose(image, rng):
    """Light and colour of the sensor: gain, gamma, contrast, tint.  The training does the same by its own tables
    (dataset.py), so shards are stored without it; the held-out pairs and the samples get it here."""
    return apply_tables(image, exposure_tables(image, rng))


def exposure_tables(image, rng, strength=1.0):
    """Three tables of 256 floats in 0..1, one a channel."""
    draw = lambda sigma: max(-2 * sigma, min(2 * sigma, rng.gauss(0, sigma))) * strength
    gamma, gain, contrast, bias = math.exp(draw(.22)), math.exp(draw(.20)), math.exp(draw(.18)), draw(.03)
    base = np.maximum(np.arange(256, dtype=np.float32) / 255, 1 / 255) ** gamma
    middle = (float(image[::8, ::8].mean()) / 255) ** gamma
    return [np.clip(((base - middle) * contrast + middle) * gain * math.exp(draw(.06)) + bias, 0, 1) for _ in range(3)]


def apply_tables(image, tables):
    return np.stack([(t * 255 + .5).astype(np.uint8)[image[..., i]] for i, t in enumerate(tables)], -1)
