#!/usr/bin/env bash
# Scenes: geo.sh BUILD_DIR. In one run: decoding, warping and cutting into windows, beside gdalwarp and beside what the nano model takes of
# a scene (2 cores); peak memory of all processes at SIDE (20,000) pixels a side and, with LARGE=40000 or more sides, at those. Files of
# 1.5 GB, 6.5 GB at 40,000, 10 GB at 50,000, one pair at a time, in TMPDIR. The figures go into docs/performance.md by hand: they name
# the machine.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$(realpath "$1")
side=${SIDE:-20000}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make_pair() { # SIDE NAME: a sample repeated, with noise; the after image in the next zone, 1.3 times as coarse
  /usr/bin/python3 - "$1" "$work/$2" <<'PY'
import sys
import numpy as np
from osgeo import gdal, osr
gdal.UseExceptions()
side, name = int(sys.argv[1]), sys.argv[2]
tile = gdal.Open('samples/houses_before.png').ReadAsArray()[:3]
def write(path, side, epsg, gsd, x, y, seed):
    random = np.random.RandomState(seed)
    srs = osr.SpatialReference()
    srs.ImportFromEPSG(epsg)
    ds = gdal.GetDriverByName('GTiff').Create(path, side, side, 3, gdal.GDT_Byte, ['TILED=YES', 'BLOCKXSIZE=512', 'BLOCKYSIZE=512',
                                              'COMPRESS=DEFLATE', 'ZLEVEL=1', 'BIGTIFF=YES', 'INTERLEAVE=PIXEL', 'NUM_THREADS=ALL_CPUS'])
    ds.SetProjection(srs.ExportToWkt())
    ds.SetGeoTransform((x, gsd, 0, y, 0, -gsd))
    step = 512
    for row in range(0, side, step):
        h = min(step, side - row)
        line = np.tile(tile, (1, -(-h // tile.shape[1]), -(-side // tile.shape[2])))[:, :h, :side]
        noise = random.randint(0, 8, (1, h, 1024), dtype=np.uint8)
        line = np.minimum(line, 247) + np.tile(noise, (1, 1, -(-side // 1024)))[:, :, :side]
        ds.WriteRaster(0, row, side, h, np.ascontiguousarray(line).tobytes())
t_from, t_to = osr.SpatialReference(), osr.SpatialReference()
t_from.ImportFromEPSG(32633)
t_to.ImportFromEPSG(32632)
for s in (t_from, t_to): s.SetAxisMappingStrategy(osr.OAMS_TRADITIONAL_GIS_ORDER)
x, y, _ = osr.CoordinateTransformation(t_from, t_to).TransformPoint(300000, 5600000)
write(name + '_before.tif', side, 32633, 0.5, 300000, 5600000, 1)
write(name + '_after.tif', int(side / 1.3), 32632, 0.65, x, y, 2)
PY
}
export BTCCHAT_GEO=$build/btcchat-geo
report() { # TEXT ARGS...: its JSON is kept in $json
  json=$("$build/btcchat-bench-geo" "${@:2}")
  echo "$1: $json"
}
scene() { # TEXT SECONDS PAIR: the command itself, with the model
  json=$(bench/geo_scene.py "$build/btcchat" "$2" "$work/$3_before.tif" "$work/$3_after.tif" "$work/$3.gpkg")
  echo "$1: $json"
}
value() { # KEY of $json
  sed -nE 's/.*"'"$1"'": ?([0-9.]+).*/\1/p' <<<"$json"
}
seconds() { awk -v a="$1" -v b="$(date +%s.%N)" 'BEGIN {printf "%.2f", b - a}'; }

uptime
make_pair "$side" a
du -m "$work"/a_*.tif
report "read and warp, windows of 256 that share none" "$work/a_before.tif" "$work/a_after.tif" 256 0
report "the same grid, no warp" "$work/a_before.tif" "$work/a_before.tif" 256 0
report "windows that share 64" "$work/a_before.tif" "$work/a_after.tif" 256 64 "${MOST_S:-60}"
decoded=$(value windows_s)

extent=(300000 "$(awk -v s="$side" 'BEGIN {printf "%.1f", 5600000 - s / 2}')" "$(awk -v s="$side" 'BEGIN {printf "%.1f", 300000 + s / 2}')" 5600000)
start=$(date +%s.%N)
processor=$({ TIMEFORMAT='%U %S'; time gdalwarp -q -t_srs EPSG:32633 -te "${extent[@]}" -tr 0.5 0.5 -r bilinear -et 0.125 -wm 64 \
  --config GDAL_CACHEMAX 384 --config GDAL_NUM_THREADS 1 -dstalpha -co TILED=YES -co BIGTIFF=YES "$work/a_after.tif" "$work/warped.tif"; } 2>&1)
awk -v t="$(seconds "$start")" -v p="$processor" -v s="$side" 'BEGIN {split(p, c, " "); printf "gdalwarp of the after image alone, one thread, to an uncompressed file: %.1f s, %.1f processor seconds, %.1f MB/s of RGB\n", t, c[1] + c[2], s * s * 3 / 1e6 / t}'
rm -f "$work/warped.tif"

make_pair 3000 m
scene "btcchat scene with the nano model, 3,000 a side, to its end" 0 m
awk -v d="$decoded" -v n="$(value captioned_s)" 'BEGIN {printf "decode, warp and cut %.1f windows/s; the nano model (with these) takes %.2f: %.1f times\n", d, n, d / n}'
scene "btcchat scene, $side a side, its first minute" 60 a
for large in ${LARGE:-}; do
  rm -f "$work"/a_*.tif "$work"/b_*.tif
  make_pair "$large" b
  report "$large a side, windows that share 64" "$work/b_before.tif" "$work/b_after.tif" 256 64 "${MOST_S:-60}"
  scene "btcchat scene, $large a side, its first minute" 60 b
done
