"""Makes the Landsat pair of samples/ from the scenes inside Debian's package r-cran-satellite.

    apt-get download r-cran-satellite && dpkg -x r-cran-satellite_*.deb unpacked
    python landsat.py unpacked/usr/lib/R/site-library/satellite/extdata ../../samples

Landsat 7 (2001-07-30) and Landsat 8 (2013-07-07), the same 41 x 41 cells of 30 m.  The two sensors store different
numbers (tens against thousands), and haze lifts blue over red, so every band of every date is stretched by itself in
the same way: its 2nd percentile becomes 0, its 98th becomes 255.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

# name of the sample, file prefix, bands for red, green, blue
DATES = (("landsat_before", "LE07_L1TP_195025_20010730_20170204_01_T1", (3, 2, 1)),
         ("landsat_after", "LC08_L1TP_195025_20130707_20170503_01_T1", (4, 3, 2)))


def true_colour(folder, prefix, bands):
    values = np.stack([np.asarray(Image.open(folder / f"{prefix}_B{b}.TIF"), np.float64) for b in bands], -1)
    low, high = np.percentile(values, (2, 98), axis=(0, 1))
    return (np.clip((values - low) / (high - low), 0, 1) * 255 + .5).astype(np.uint8)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extdata", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    for name, prefix, bands in DATES:
        image = true_colour(args.extdata, prefix, bands)
        Image.fromarray(image).save(args.out / f"{name}.png")
        print(name, image.shape)


if __name__ == "__main__":
    main()
