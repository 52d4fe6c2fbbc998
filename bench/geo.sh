#!/usr/bin/env bash
# Scenes: geo.sh BUILD_DIR. Decoding, warping and cutting into windows beside gdalwarp, in one run, and beside what the nano model takes;
# peak memory at 20,000 and (LARGE=1) 40,000 pixels a side. Files of up to 10 GB in TMPDIR. The figures go between the geo markers of
# docs/performance.md by hand: they name the machine.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$(realpath "$1")
side=${SIDE:-20000}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make_pair() { # SIDE NAME: a sample, magnified and repeated by gdal_translate through a VRT; the after image in the next zone, 1.3 times as coarse
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
# PAIR: the largest process of `btcchat scene` in its first half minute: the command itself with model, journal and the map's rows, or the decoder.
scene_peak() {
  /usr/bin/python3 - "$build/btcchat" "$1" <<'PY'
import resource, signal, subprocess, sys
p = subprocess.Popen([sys.argv[1], 'scene', sys.argv[2] + '_before.tif', sys.argv[2] + '_after.tif', '-o', sys.argv[2] + '.gpkg'], stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL)
try:
    p.wait(30)
except subprocess.TimeoutExpired:
    p.send_signal(signal.SIGINT)
    p.wait(60)
print('btcchat scene, first 30 s: peak of one process %.0f MB' % (resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024))
PY
  rm -rf "$1".*
}
report() { echo "$1: $("$build/btcchat-bench-geo" "${@:2}")"; }

make_pair "$side" a
du -m "$work"/a_*.tif
report "read and warp, windows of 256 that share none" "$work/a_before.tif" "$work/a_after.tif" 256 0
report "the same grid, no warp" "$work/a_before.tif" "$work/a_before.tif" 256 0
report "windows that share 64" "$work/a_before.tif" "$work/a_after.tif" 256 64 "${MOST_S:-60}"
extent=(300000 "$(awk -v s="$side" 'BEGIN {printf "%.1f", 5600000 - s / 2}')" "$(awk -v s="$side" 'BEGIN {printf "%.1f", 300000 + s / 2}')" 5600000)
start=$(date +%s.%N)
gdalwarp -q -t_srs EPSG:32633 -te "${extent[@]}" -tr 0.5 0.5 -r bilinear -et 0.125 -wm 64 --config GDAL_CACHEMAX 384 --config GDAL_NUM_THREADS 1 \
  -dstalpha -co TILED=YES -co BIGTIFF=YES "$work/a_after.tif" "$work/warped.tif"
awk -v a="$start" -v b="$(date +%s.%N)" -v s="$side" 'BEGIN {printf "gdalwarp of the after image alone to an uncompressed file: %.1f s, %.1f MB/s of RGB\n", b - a, s * s * 3 / 1e6 / (b - a)}'
rm -f "$work/warped.tif"
echo "nano model: $("$build/btcchat" scene "$work/a_before.tif" "$work/a_after.tif" -o "$work/x.gpkg" --dry-run | grep time)"
scene_peak "$work/a"
if [ -n "${LARGE:-}" ]; then
  rm -f "$work"/a_*.tif
  make_pair 40000 b
  report "40,000 a side" "$work/b_before.tif" "$work/b_after.tif" 256 64 "${MOST_S:-60}"
  scene_peak "$work/b"
fi
