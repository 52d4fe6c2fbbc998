"""The picture of README.md: before, after, change map, and the caption, made by the program itself.

    python tools/example_picture.py build/btcchat samples/houses docs/images/example.png        (needs Pillow)
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, BAR = 384, 12, 74


def font(size):
    for name in ("DejaVuSans.ttf", "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"):
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


program, stem, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
before, after = f"{stem}_before.png", f"{stem}_after.png"
with tempfile.TemporaryDirectory() as folder:
    heat = f"{folder}/change.png"
    caption = subprocess.run([program, "caption", before, after, "--heatmap", heat], check=True, capture_output=True, text=True).stdout.strip()
    panels = [Image.open(p).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC) for p in (before, after, heat)]
sheet = Image.new("RGB", (3 * SIDE + 4 * GAP, SIDE + BAR + 2 * GAP), "white")
draw = ImageDraw.Draw(sheet)
for i, (panel, name) in enumerate(zip(panels, ("before", "after", "where it changed"))):
    x = GAP + i * (SIDE + GAP)
    sheet.paste(panel, (x, GAP))
    draw.text((x + SIDE // 2, GAP + SIDE + 16), name, fill="#555555", font=font(17), anchor="mm")
draw.text((sheet.width // 2, GAP + SIDE + 52), f"“{caption}”", fill="black", font=font(26), anchor="mm")
out.parent.mkdir(parents=True, exist_ok=True)
sheet.quantize(192, dither=Image.Dither.NONE).save(out, optimize=True)
print(f"{out}: {caption}")
