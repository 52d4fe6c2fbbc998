"""Random overhead scenes with a known change: what stands where, before and after.

A scene is a list of objects in a 256 x 256 frame (half a metre a pixel, the scale of LEVIR-CD), each with a
phase: it stands on BOTH dates, only BEFORE or only AFTER.  `events` says in words' terms what the objects of one
phase amount to; captions.py turns events into sentences and render.py turns objects into pixels.

Every event has a place that can be seen: scenes whose place would be a toss-up (a centre on the line between two
cells) are thrown away, because a rule that the pixels do not decide cannot be learnt from pixels.
"""

import math
import random
from dataclasses import dataclass, field, replace

import numpy as np

FRAME = 256.0
BOTH, BEFORE, AFTER = "both", "before", "after"
KINDS = ("road", "building", "house", "tree", "bareland", "pond")
ACROSS = 9                    # the place of what is spread over the whole scene; 0..8 are the cells, row by row

CELL_MARGIN = 5.0             # a centre nearer than this to a cell's border has no clear place
ACROSS_SPAN = (138.0, 160.0)  # spread in both directions: below, a cell; above, "across"; between, unclear


@dataclass(frozen=True)
class Event:
    kind: str
    sign: int                 # +1 stands after only, -1 stood before only
    count: int
    place: int
    row: bool = False         # houses in one line
    along_road: bool = False  # houses on the plots of a road that stands on both dates
    on_bareland: bool = False  # built where bare land was (the bare land is an event of its own)


@dataclass
class Road:
    points: np.ndarray        # [n, 2], about 10 pixels apart, reaching out of the frame
    width: float
    surface: str              # asphalt, concrete, dirt
    phase: str = BOTH
    dead_end: bool = False    # a turning circle at the last point


@dataclass
class House:
    x: float
    y: float
    width: float
    depth: float
    angle: float
    roof: tuple
    height: float
    hip: bool
    wing: tuple | None        # (side, end, width share, depth share) of a second roof, or None
    phase: str = BOTH
    drive: tuple | None = None   # where its driveway meets the road
    yard: bool = True


@dataclass
class Building:
    x: float
    y: float
    width: float
    depth: float
    angle: float
    roof: tuple
    height: float
    parts: list               # rectangles (u, v, w, d) as shares of width and depth
    ridge: bool               # a shallow two-tone roof instead of a flat one
    units: list               # (u, v, size) of what stands on the roof
    phase: str = BOTH

    def corners(self):
        offsets = [rotate(self.angle, u * self.width / 2, v * self.depth / 2) for u in (-1, 1) for v in (-1, 1)]
        return [(self.x + dx, self.y + dy) for dx, dy in offsets]


@dataclass
class Lot:
    """A paved yard with parked cars."""
    x: float
    y: float
    width: float
    depth: float
    angle: float
    phase: str = BOTH


@dataclass
class Blob:
    """A closed outline: bare land, a pond, a patch of other grass or soil."""
    kind: str                 # bareland, pond, patch
    points: np.ndarray
    tone: tuple
    phase: str = BOTH


@dataclass
class Trees:
    discs: np.ndarray         # [n, 4]: x, y, radius, brightness
    phase: str = BOTH


@dataclass
class Scene:
    seed: int
    ground: tuple
    roads: list = field(default_factory=list)
    houses: list = field(default_factory=list)
    buildings: list = field(default_factory=list)
    lots: list = field(default_factory=list)
    blobs: list = field(default_factory=list)
    trees: list = field(default_factory=list)
    events: list = field(default_factory=list)
    furrows: float | None = None   # direction of a ploughed field, or None


GROUNDS = ((98, 108, 70), (138, 124, 92), (112, 98, 82), (74, 92, 58), (86, 84, 66), (128, 118, 96), (66, 74, 50),
           (122, 112, 100), (104, 102, 84))
BARE_TONES = ((214, 194, 152), (196, 168, 126), (206, 186, 160), (182, 150, 112), (224, 210, 176))
POND_TONES = ((46, 66, 78), (58, 84, 98), (38, 56, 60), (72, 96, 104), (52, 72, 60))
HOUSE_ROOFS = ((92, 88, 84), (110, 102, 96), (76, 74, 76), (126, 112, 100), (118, 92, 80), (146, 136, 124), (98, 92, 82),
               (86, 80, 74), (160, 150, 140), (134, 100, 86), (104, 106, 110))
BUILDING_ROOFS = ((226, 226, 224), (240, 238, 232), (200, 202, 204), (176, 178, 180), (150, 158, 170), (110, 140, 190),
                  (188, 176, 160), (142, 140, 138), (204, 196, 180), (122, 118, 116), (164, 128, 108))


def jitter(rng, colour, common, each):
    """The colour, brighter or darker as a whole and a little off in each channel."""
    shift = rng.gauss(0, common)
    return tuple(min(255.0, max(0.0, c + shift + rng.gauss(0, each))) for c in colour)


def place_of(points):
    """The place of a set of points: 0..8, ACROSS, or None where it is unclear."""
    points = np.asarray(points, float)
    span = np.ptp(points, axis=0).min() if len(points) > 1 else 0.0
    if span > ACROSS_SPAN[1]:
        return ACROSS
    if span > ACROSS_SPAN[0]:
        return None
    cell = []
    for value in points.mean(axis=0):
        if min(abs(value - FRAME / 3), abs(value - 2 * FRAME / 3)) < CELL_MARGIN:
            return None
        cell.append(int(np.clip(value // (FRAME / 3), 0, 2)))
    return cell[1] * 3 + cell[0]


def inside(points, margin=0.0):
    points = np.asarray(points, float)
    return ((points >= margin) & (points <= FRAME - margin)).all(axis=-1)


def rotate(angle, u, v):
    c, s = math.cos(angle), math.sin(angle)
    return u * c - v * s, u * s + v * c


def outline(rng, x, y, radius, stretch=1.3, rough=0.25):
    """A closed wobbly curve around a point."""
    count = 40
    turn = np.linspace(0, 2 * math.pi, count, endpoint=False)
    wave = np.ones(count)
    for order in (2, 3, 4, 5):
        wave += rough / order * rng.uniform(0.3, 1.4) * np.cos(order * turn + rng.uniform(0, 6.3))
    stretch = math.exp(rng.uniform(-1, 1) * math.log(stretch))
    px, py = radius * wave * stretch * np.cos(turn), radius * wave / stretch * np.sin(turn)
    tilt = rng.uniform(0, math.pi)
    return np.stack([x + px * math.cos(tilt) - py * math.sin(tilt), y + px * math.sin(tilt) + py * math.cos(tilt)], 1)


class Builder:
    """Puts one scene together; `taken` are circles that nothing else may enter."""

    def __init__(self, rng, seed):
        self.rng = rng
        self.scene = Scene(seed=seed, ground=jitter(rng, rng.choice(GROUNDS), 8, 3))
        self.taken = []

    # -- finding room ------------------------------------------------------------------------------------------

    def claim(self, x, y, radius):
        self.taken.append((x, y, radius))

    def free(self, x, y, radius, roads=True):
        if any(math.hypot(x - a, y - b) < radius + c for a, b, c in self.taken):
            return False
        return not roads or self.road_gap(x, y) > radius

    def road_gap(self, x, y, skip=None):
        gaps = [np.hypot(r.points[:, 0] - x, r.points[:, 1] - y).min() - r.width / 2 for r in self.scene.roads if r is not skip]
        return min(gaps, default=1e9)

    def find(self, radius, margin, tries=40):
        for _ in range(tries):
            x, y = self.rng.uniform(margin, FRAME - margin), self.rng.uniform(margin, FRAME - margin)
            if self.free(x, y, radius):
                return x, y
        return None

    def near_road_angle(self, x, y):
        best = None
        for road in self.scene.roads:
            gap = np.hypot(road.points[:, 0] - x, road.points[:, 1] - y)
            i = int(gap[:-1].argmin())
            if best is None or gap[i] < best[0]:
                step = road.points[i + 1] - road.points[i]
                best = (gap[i], math.atan2(step[1], step[0]))
        return best[1] if best else self.rng.uniform(0, math.pi)

    # -- roads and plots ---------------------------------------------------------------------------------------

    def road(self, phase=BOTH, angle=None, through=None, surface=None):
        rng = self.rng
        if angle is None:
            angle = rng.uniform(0, math.pi) if rng.random() < 0.6 else rng.choice((0, math.pi / 2)) + rng.gauss(0, 0.05)
        x, y = through or (rng.uniform(45, 211), rng.uniform(45, 211))
        bend = 0.0 if rng.random() < 0.45 else rng.uniform(-120, 120)
        t = np.linspace(-1, 1, 45)
        u, v = 230 * t, bend * (1 - t * t) - bend * 0.85   # the bend keeps its middle near the wanted point
        c, s = math.cos(angle), math.sin(angle)
        points = np.stack([x + u * c - v * s, y + u * s + v * c], 1)
        dead_end = rng.random() < 0.15
        if dead_end:
            points = points[:rng.randint(18, 28)]
        road = Road(points, rng.uniform(11, 20), surface or rng.choice(("asphalt", "asphalt", "concrete", "concrete", "dirt")),
                    phase, dead_end)
        self.scene.roads.append(road)
        return road

    def plots(self, road):
        """House plots on both sides of a road, in order along it: (x, y, angle, side, road x, road y)."""
        rng = self.rng
        steps = np.hypot(*np.diff(road.points, axis=0).T)
        along = np.concatenate([[0], steps.cumsum()])
        out = []
        spacing = rng.uniform(35, 48)
        for side in (-1, 1):
            back = road.width / 2 + rng.uniform(21, 28)
            for t in np.arange(rng.uniform(0, spacing), along[-1], spacing):
                px, py = np.interp(t, along, road.points[:, 0]), np.interp(t, along, road.points[:, 1])
                i = min(int(np.searchsorted(along, t)), len(steps)) - 1
                step = road.points[i + 1] - road.points[i]
                angle = math.atan2(step[1], step[0])
                x, y = px - side * back * math.sin(angle), py + side * back * math.cos(angle)
                if not inside((x, y), 9) or self.road_gap(x, y, skip=road) < 19 or self.road_gap(x, y) < 14:
                    continue
                if all(math.hypot(x - o[0], y - o[1]) > 33 for o in out):
                    out.append((x, y, angle, side, px, py))
        return out

    def house(self, x, y, angle, phase=BOTH, drive=None):
        rng = self.rng
        wing = None
        if rng.random() < 0.6:
            wing = (rng.choice((-1, 1)), rng.choice((-1, 1)), rng.uniform(0.4, 0.55), rng.uniform(0.4, 0.6))
        width, depth = rng.uniform(25, 36), rng.uniform(21, 31)
        self.scene.houses.append(House(x, y, width, depth, angle, jitter(rng, rng.choice(HOUSE_ROOFS), 12, 3), rng.uniform(4, 7),
                                       rng.random() < 0.7, wing, phase, drive))
        self.claim(x, y, 19)

    def house_on(self, plot, phase):
        x, y, angle, _, px, py = plot
        self.house(x + self.rng.gauss(0, 1.5), y + self.rng.gauss(0, 1.5), angle + self.rng.gauss(0, 0.04), phase,
                   (px, py) if self.rng.random() < 0.9 else None)

    # -- large things ------------------------------------------------------------------------------------------

    def building(self, x, y, scale, phase):
        rng = self.rng
        shape = rng.choice(("bar", "bar", "bar", "ell", "tee", "you", "step", "pair"))
        parts = {"bar": [(0, 0, 1, 1)],
                 "ell": [(0, -0.22, 1, 0.56), (-0.27, 0.2, 0.46, 0.6)],
                 "tee": [(0, -0.22, 1, 0.56), (0, 0.2, 0.4, 0.6)],
                 "you": [(0, -0.28, 1, 0.44), (-0.34, 0.18, 0.32, 0.64), (0.34, 0.18, 0.32, 0.64)],
                 "step": [(-0.2, -0.1, 0.6, 0.8), (0.24, 0.12, 0.54, 0.76)],
                 "pair": [(0, -0.27, 1, 0.42), (0, 0.27, 1, 0.42), (0, 0, 0.22, 0.3)]}[shape]
        if rng.random() < 0.5:
            parts = [(-u, v, w, d) for u, v, w, d in parts]
        width, depth = scale * rng.uniform(1.5, 2.3), scale * rng.uniform(0.95, 1.35)
        units = [(rng.uniform(-0.45, 0.45), rng.uniform(-0.45, 0.45), rng.uniform(2, 6)) for _ in range(rng.randint(0, 10))]
        angle = self.near_road_angle(x, y) + rng.choice((0, math.pi / 2)) + rng.gauss(0, 0.03)
        self.scene.buildings.append(Building(x, y, width, depth, angle, jitter(rng, rng.choice(BUILDING_ROOFS), 8, 3),
                                             rng.uniform(6, 13), parts, rng.random() < 0.3, units, phase))
        self.claim(x, y, width * 0.52)
        if rng.random() < 0.3 and self.road_gap(x, y) > math.hypot(width, depth) / 2 + 22:    # paved all around
            self.scene.lots.append(Lot(x, y, width + rng.uniform(36, 60), depth + rng.uniform(36, 60), angle, phase))
            self.claim(x, y, math.hypot(width, depth) / 2 + 14)
        elif rng.random() < 0.65:
            deep, sign = rng.uniform(26, 46), rng.choice((-1, 1))
            px, py = rotate(angle, 0, sign * (depth / 2 + deep / 2 + 2))
            if self.road_gap(x + px, y + py) > 2 and all(math.hypot(x + px - h.x, y + py - h.y) > deep / 2 + 22 for h in self.scene.houses):
                self.scene.lots.append(Lot(x + px, y + py, width * rng.uniform(0.9, 1.25), deep, angle, phase))
                self.claim(x + px, y + py, deep * 0.6)

    def blob(self, kind, x, y, radius, phase):
        tones = {"bareland": BARE_TONES, "pond": POND_TONES, "patch": GROUNDS}[kind]
        points = outline(self.rng, x, y, radius, rough=0.45 if kind == "bareland" else 0.25)
        self.scene.blobs.append(Blob(kind, points, jitter(self.rng, self.rng.choice(tones), 6, 3), phase))
        return points

    def grove(self, x, y, radius, density, phase, keep_clear=True, spare=None):
        """Trees around a point; `spare` are points they may stand on although taken."""
        rng = self.rng
        tone = rng.uniform(0.75, 1.15)
        discs = []
        for _ in range(int(density * radius * radius / 55)):
            turn, reach = rng.uniform(0, 2 * math.pi), radius * math.sqrt(rng.random()) * rng.uniform(0.8, 1.1)
            tx, ty = x + reach * math.cos(turn), y + reach * math.sin(turn)
            if not inside((tx, ty), -6 if phase == BOTH else 3):
                continue
            blocked = keep_clear and any(math.hypot(tx - a, ty - b) < c * 0.95 + 4 for a, b, c in self.taken if not spare or (a, b) not in spare)
            if not blocked and self.road_gap(tx, ty) > 5:
                discs.append((tx, ty, rng.uniform(4, 10), tone * rng.uniform(0.8, 1.2)))
        if discs:
            self.scene.trees.append(Trees(np.array(discs, np.float32), phase))
        return discs

    # -- events ------------------------------------------------------------------------------------------------

    def event(self, kind, sign, points, count=1, **more):
        """Notes an event; False where its place is unclear."""
        place = place_of(points)
        if place is None:
            return False
        self.scene.events.append(Event(kind, sign, count, place, **more))
        return True

    def prepare_site(self, points, radius, place_points):
        """What the new houses or buildings replace: trees, bare land, or plain grass.  False if unclear."""
        draw = self.rng.random()
        points = np.asarray(points, float)
        if draw < 0.3:
            spare = {(float(x), float(y)) for x, y in points}
            discs = []
            for x, y in points:
                discs += self.grove(x, y, radius, 1.3, BEFORE, spare=spare)
            if len(discs) < 8:
                self.scene.trees = [t for t in self.scene.trees if t.phase != BEFORE]
                return True
            return self.event("tree", -1, [d[:2] for d in discs], len(discs))
        if draw < 0.5:
            for x, y in points:
                self.blob("bareland", x, y, radius * 1.15, BEFORE)
            if not self.event("bareland", -1, place_points):
                return False
            host, land = self.scene.events[-2:]
            # One clause tells both ("on the bare land"), so both are where the larger thing is.
            self.scene.events[-2:] = replace(host, on_bareland=True), replace(land, place=host.place)
        return True


def furnish(b, occupied, buildings):
    """The unchanging rest: houses on free plots, large buildings, trees, patches."""
    rng = b.rng
    for road in [r for r in b.scene.roads if r.phase == BOTH]:
        for plot in b.plots(road):
            if rng.random() < occupied and b.free(plot[0], plot[1], 16, roads=False):
                b.house_on(plot, BOTH)
    for _ in range(buildings):
        spot = b.find(36, 30)
        if spot:
            b.building(*spot, rng.uniform(34, 46), BOTH)
    if rng.random() < 0.10:
        spot = b.find(26, 22)
        if spot:
            b.blob("pond", *spot, rng.uniform(20, 34), BOTH)
            b.claim(*spot, 34)
    if rng.random() < 0.25:
        spot = b.find(14, 10)
        if spot:
            b.blob("bareland", *spot, rng.uniform(14, 42), BOTH)
    for _ in range(rng.choice((0, 0, 1, 2))):
        b.blob("patch", rng.uniform(0, FRAME), rng.uniform(0, FRAME), rng.uniform(30, 110), BOTH)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        b.grove(rng.uniform(0, FRAME), rng.uniform(0, FRAME), rng.uniform(22, 75), rng.uniform(0.4, 1.4), BOTH)
    b.grove(FRAME / 2, FRAME / 2, 180, rng.uniform(0.0, 0.05), BOTH)


def lay_roads(b, style):
    rng = b.rng
    if style == "street":       # one or two roads anywhere
        for _ in range(rng.choice((1, 1, 2))):
            b.road()
    elif style == "suburb":     # parallel streets, as close as two rows of houses allow, and sometimes one across
        angle, gap = rng.uniform(0, math.pi), rng.uniform(100, 135)
        start = rng.uniform(-60, 60)
        for k in (-1, 0, 1):
            off = start + k * gap
            if abs(off) < 140:
                b.road(angle=angle + rng.gauss(0, 0.04), through=(128 - off * math.sin(angle), 128 + off * math.cos(angle)))
        if rng.random() < 0.3:
            b.road(angle=angle + math.pi / 2)
    elif rng.random() < 0.3:    # open country
        b.road()


def new_houses_on_road(b):
    rng = b.rng
    road = rng.choice(b.scene.roads)
    plots = b.plots(road)
    side = rng.choice((-1, 1, 0, 0))
    plots = [p for p in plots if side in (0, p[3])]
    if side == 0:
        plots.sort(key=lambda p: (p[4] - road.points[0, 0]) ** 2 + (p[5] - road.points[0, 1]) ** 2)
    if not plots:
        return False
    most = len(plots)
    n = rng.randint(1, most) if rng.random() < 0.6 else most
    first = rng.randint(0, most - n)
    chosen = plots[first:first + n]
    if n >= 8 or side == 0:     # a second street's plots too, now and then: whole quarters are built at once
        for other in b.scene.roads:
            if other is not road and rng.random() < 0.4:
                chosen += [p for p in b.plots(other) if all(math.hypot(p[0] - q[0], p[1] - q[1]) > 33 for q in chosen)]
    for plot in chosen:
        b.house_on(plot, AFTER)
    centres = [(p[0], p[1]) for p in chosen]
    new = [h for h in b.scene.houses if h.phase == AFTER]
    row = len(chosen) >= 4 and len({(p[3]) for p in chosen}) == 1 and len(chosen) == n
    if not b.event("house", 1, centres, len(chosen), row=row, along_road=road.phase == BOTH):
        return False
    return b.prepare_site([(h.x, h.y) for h in new], 25, centres)


def new_houses_free(b):
    rng = b.rng
    n = rng.choice((1, 1, 2, 2, 3, 4, 5))
    angle = rng.uniform(0, math.pi)
    centres = []
    for _ in range(n * 25):
        if len(centres) == n:
            break
        if centres:
            x, y = centres[0][0] + rng.uniform(-70, 70), centres[0][1] + rng.uniform(-70, 70)
        else:
            x, y = rng.uniform(18, 238), rng.uniform(18, 238)
        if inside((x, y), 14) and b.free(x, y, 20):
            b.house(x, y, angle + rng.choice((0, math.pi / 2)), AFTER)
            centres.append((x, y))
    if not centres or not b.event("house", 1, centres, len(centres)):
        return False
    return b.prepare_site([(h.x, h.y) for h in b.scene.houses if h.phase == AFTER], 25, centres)


def new_building(b):
    rng = b.rng
    n = 2 if rng.random() < 0.18 else 1
    centres = []
    for _ in range(n):
        scale = rng.uniform(34, 80) if n == 1 else rng.uniform(34, 44)
        spot = b.find(scale * 0.8, scale * 0.75 if scale < 50 else scale * rng.uniform(0.3, 0.75))   # large ones may be cut off
        if spot:
            b.building(*spot, scale, AFTER)
            centres.append(spot)
    new = [c for building in b.scene.buildings for c in building.corners()]
    if not centres or not b.event("building", 1, np.clip(new, 0, FRAME), len(centres)):
        return False
    return b.prepare_site(centres, 44, centres)


def new_road(b):
    b.scene.roads = b.scene.roads[:b.rng.choice((0, 1))]
    road = b.road(AFTER, surface=b.rng.choice(("asphalt", "concrete", "concrete")))
    seen = road.points[inside(road.points)]
    if len(seen) < 9 or not b.event("road", 1, seen):
        return False
    if b.rng.random() < 0.5:
        plots = b.plots(road)
        n = b.rng.randint(0, len(plots))
        plots = plots[:n]
        for plot in plots:
            b.house_on(plot, AFTER)
        if plots:
            return b.event("house", 1, [p[:2] for p in plots], len(plots))
    return True


def tree_change(b):
    spot = b.find(24, 30) or (b.rng.uniform(35, 221), b.rng.uniform(35, 221))
    sign = -1 if b.rng.random() < 0.65 else 1
    discs = b.grove(*spot, b.rng.uniform(36, 78), b.rng.uniform(0.9, 1.5), BEFORE if sign < 0 else AFTER)
    b.claim(*spot, 45)
    return len(discs) >= 10 and b.event("tree", sign, [d[:2] for d in discs], len(discs))


def blob_change(b, kind, low, high):
    radius = b.rng.uniform(low, high)
    spot = b.find(radius * 0.8, 26)
    if not spot:
        return False
    points = b.blob(kind, *spot, radius, AFTER)
    b.claim(*spot, radius * 1.1)
    seen = np.clip(points, 0, FRAME)
    return b.event(kind, 1, np.concatenate([seen, [seen.mean(axis=0)]]))


RECIPES = (("plots", 30), ("free", 12), ("building", 20), ("road", 18), ("tree", 12), ("bareland", 8), ("pond", 9))


def try_scene(rng, seed):
    b = Builder(rng, seed)
    recipe = rng.choices([r for r, _ in RECIPES], [w for _, w in RECIPES])[0]
    style = rng.choice({"plots": ("street", "suburb", "suburb"), "free": ("street", "open", "open")}.get(recipe, ("street", "suburb", "open")))
    lay_roads(b, style)
    if not b.scene.roads and recipe == "plots":
        b.road()
    if rng.random() < 0.10:
        b.scene.furrows = rng.uniform(0, math.pi)
    done = {"plots": new_houses_on_road, "free": new_houses_free, "building": new_building, "road": new_road, "tree": tree_change,
            "bareland": lambda b: blob_change(b, "bareland", 30, 75), "pond": lambda b: blob_change(b, "pond", 24, 52)}[recipe](b)
    if not done or not b.scene.events:
        return None
    occupied = rng.choice((0, 0.4, 0.9, 0.9)) if style == "suburb" else rng.choice((0, 0, 0.4, 0.9))
    furnish(b, occupied, rng.choices((0, 1, 2, 4), (.6, .18, .12, .10))[0])    # 2 and 4: a business district
    return b.scene


def make_scene(seed):
    """The scene of a seed: always the same one, with at least one event."""
    for attempt in range(200):
        scene = try_scene(random.Random(f"{seed}/{attempt}"), seed)
        if scene:
            return scene
    raise RuntimeError(f"no clear scene for seed {seed}")
