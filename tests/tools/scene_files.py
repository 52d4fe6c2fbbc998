#!/usr/bin/python3
"""Scenes for test_scene.c, and the outputs of `btcchat scene` judged by GDAL and rasterio instead of our own reader.

    scene_files.py make DIR SAMPLES          before.tif and its after images
    scene_files.py levir DIR SHARED          a mosaic of real pairs
    scene_files.py check OUT BEFORE AFTER    layers, map and records of OUT(.gpkg) against ground computed here
    scene_files.py equal A.jsonl B.jsonl     the same records, timings apart

Exit code 77: the Python libraries are not installed.
"""

import glob
import json
import os
import sys

try:
    import numpy as np
    import rasterio
    import rasterio.warp
    from osgeo import gdal, ogr, osr
except ImportError:
    sys.exit(77)

gdal.UseExceptions()
ogr.UseExceptions()
UTM, X0, Y0, GSD = 32633, 412000.0, 5650000.0, 0.5


def picture(path):
    return gdal.Open(path).ReadAsArray()[:3]


def write(path, pixels, date=None, epsg=UTM, gsd=GSD, origin=(X0, Y0), nodata=None):
    kind = {"uint8": gdal.GDT_Byte, "uint16": gdal.GDT_UInt16, "float32": gdal.GDT_Float32}[pixels.dtype.name]
    ds = gdal.GetDriverByName("GTiff").Create(path, pixels.shape[2], pixels.shape[1], pixels.shape[0], kind, ["TILED=YES", "COMPRESS=DEFLATE"])
    srs = osr.SpatialReference()
    srs.ImportFromEPSG(epsg)
    ds.SetProjection(srs.ExportToWkt())
    ds.SetGeoTransform((origin[0], gsd, 0, origin[1], 0, -gsd))
    if date:
        ds.SetMetadataItem("TIFFTAG_DATETIME", date)
    for i, band in enumerate(pixels):
        ds.GetRasterBand(i + 1).WriteArray(band)
        if nodata is not None:
            ds.GetRasterBand(i + 1).SetNoDataValue(nodata)
    return ds


def mosaic(names, folder, columns, rows, changed):
    before = np.zeros((3, rows * 256, columns * 256), np.uint8)
    after = before.copy()
    for i in range(rows * columns):
        y, x = i // columns * 256, i % columns * 256
        name = names[i % len(names)]
        b, a = (picture(os.path.join(folder, f"{name}_{when}.png")) for when in ("before", "after"))
        before[:, y:y + 256, x:x + 256] = b
        after[:, y:y + 256, x:x + 256] = a if i in changed else b
    return before, after


def make(folder, samples):
    before, after = mosaic(("houses", "building", "removed", "road"), samples, 4, 3, (1, 6, 8))
    write(f"{folder}/before.tif", before, "2019:05:31 10:20:30")
    ds = write(f"{folder}/same.tif", after, "2021:06:01 00:00:00")
    # another zone, resolution and extent; a warp is never the same picture, so nothing is unchanged here
    gdal.Warp(f"{folder}/warped.tif", ds, dstSRS="EPSG:32634", xRes=0.4, yRes=0.4, resampleAlg="cubic", dstNodata=0)
    write(f"{folder}/before16.tif", before.astype(np.uint16) * 40 + 1000)
    ds = write(f"{folder}/after16.tif", after.astype(np.uint16) * 40 + 1000)
    gdal.Warp(f"{folder}/mercator16.tif", ds, dstSRS="EPSG:3857", xRes=0.9, yRes=0.9, resampleAlg="bilinear", dstNodata=0)
    # shifted by whole and part pixels: only part of the ground is common
    shifted = np.zeros_like(after)
    shifted[:, :, :] = after
    write(f"{folder}/shifted.tif", shifted[:, 100:, 390:], origin=(X0 + 390 * GSD, Y0 - 100 * GSD))
    hole = after.copy()
    hole[:, :, :300] = 0
    write(f"{folder}/hole.tif", hole, nodata=0)
    write(f"{folder}/elsewhere.tif", after, origin=(X0 + 90000, Y0))


def levir(folder, shared):
    names = [n for n in sorted(os.listdir(f"{shared}/data/levir/A")) if "113" not in n][:12]
    for side, out in (("A", "levir_before"), ("B", "levir_after")):
        pixels = np.zeros((3, 768, 1024), np.uint8)
        for i, name in enumerate(names):
            y, x = i // 4 * 256, i % 4 * 256
            pixels[:, y:y + 256, x:x + 256] = picture(f"{shared}/data/levir/{side}/{name}")
        write(f"{folder}/{out}.tif", pixels)


# ---- judging ----

def fail(text):
    sys.exit(f"scene_files.py: {text}")


def common_grid(before, after):
    """The after image on the before grid, by rasterio: bands, and where both have data."""
    with rasterio.open(before) as b, rasterio.open(after) as a:
        one, valid = b.read((1, 2, 3)).astype(np.float32), b.dataset_mask() > 0
        two = np.zeros_like(one)
        there = np.zeros(valid.shape, np.uint8)
        for i in range(3):
            rasterio.warp.reproject(rasterio.band(a, i + 1), two[i], dst_transform=b.transform, dst_crs=b.crs,
                                    resampling=rasterio.warp.Resampling.bilinear)
        rasterio.warp.reproject(a.dataset_mask(), there, src_transform=a.transform, src_crs=a.crs, dst_transform=b.transform,
                                dst_crs=b.crs, resampling=rasterio.warp.Resampling.nearest)
        return one, two, valid & (there > 0), b.transform, b.crs


def check_layer(out, transform, crs, shape):
    ds = ogr.Open(out + ".gpkg")
    layer = ds.GetLayerByName("changes")
    if layer.GetSpatialRef().GetAuthorityCode(None) != str(crs.to_epsg()):
        fail("the layer has another CRS")
    records = [json.loads(line) for line in open(out + ".jsonl")]
    if layer.GetFeatureCount() != len(records):
        fail("the layer has not a feature a record")
    covered = np.zeros(shape, bool)
    for feature, record in zip(layer, records):
        x, y, w, h = record["window"]
        covered[y:y + h, x:x + w] = True
        left, top = transform * (x, y)
        right, bottom = transform * (x + w, y + h)
        got = feature.GetGeometryRef().GetEnvelope()
        want = (left, right, bottom, top)
        if max(abs(p - q) for p, q in zip(got, want)) > 1e-6 or max(abs(p - q) for p, q in zip(record["bbox"], (left, bottom, right, top))) > 1e-6:
            fail(f"window {record['id']} lies elsewhere: {got}, not {want}")
        for name in ("id", "status", "reason", "caption", "score"):
            if feature.GetField(name) != record.get(name):
                fail(f"{record['id']}: {name} is {feature.GetField(name)!r} in the layer and {record.get(name)!r} in the record")
        if (feature.GetField("changed") == 1) != bool(record.get("changed")):
            fail(f"{record['id']}: changed differs")
    if not covered.all():
        fail("windows do not cover the scene")
    style = ds.ExecuteSQL("SELECT styleQML FROM layer_styles WHERE f_table_name = 'changes' AND useAsDefault = 1")
    if style.GetFeatureCount() != 1 or "<qgis" not in style.GetNextFeature().GetField(0):
        fail("there is no style in the GeoPackage")
    return records


def check_geojson(out, crs, records):
    features = json.load(open(out + ".geojson"))["features"]
    if len(features) != len(records):
        fail("GeoJSON has not a feature a record")
    source, target = osr.SpatialReference(), osr.SpatialReference()
    source.ImportFromEPSG(crs.to_epsg())
    target.ImportFromEPSG(4326)
    for s in (source, target):
        s.SetAxisMappingStrategy(osr.OAMS_TRADITIONAL_GIS_ORDER)
    to = osr.CoordinateTransformation(source, target)
    for feature, record in zip(features, records):
        ring = feature["geometry"]["coordinates"][0]
        for x, y in record["geometry"]["coordinates"][0]:
            lon, lat, _ = to.TransformPoint(x, y)
            if min(abs(lon - p[0]) + abs(lat - p[1]) for p in ring) > 1e-6:
                fail(f"{record['id']}: a corner is missing in GeoJSON")
        area = sum(p[0] * q[1] - q[0] * p[1] for p, q in zip(ring, ring[1:]))
        if area <= 0:
            fail(f"{record['id']}: the ring is not counterclockwise")


def check_map(out, one, two, valid, transform, crs, records):
    with rasterio.open(out + ".heat.tif") as ds:
        if ds.crs != crs or ds.nodata != -1 or ds.count != 1 or ds.dtypes[0] != "float32":
            fail(f"the map is another kind of raster: {ds.profile}")
        heat, pixel = ds.read(1), ds.transform.a / transform.a
        if (ds.transform.c, ds.transform.f) != (transform.c, transform.f):
            fail("the map begins elsewhere")
    if gdal.Info(out + ".heat.tif", format="json")["metadata"].get("IMAGE_STRUCTURE", {}).get("LAYOUT") != "COG":
        fail("the map is no Cloud-Optimised GeoTIFF")
    rows, columns = heat.shape
    if abs(columns * pixel - valid.shape[1]) > pixel / 2 + 1 or abs(rows * pixel - valid.shape[0]) > pixel / 2 + 1:
        fail("the map ends elsewhere")
    # the truth, by cells: how much the pixels differ
    difference = np.where(valid, np.abs(one - two).mean(0), 0)
    truth = np.zeros_like(heat)
    for r in range(rows):
        for c in range(columns):
            part = difference[int(r * pixel):int((r + 1) * pixel), int(c * pixel):int((c + 1) * pixel)]
            truth[r, c] = part.mean()
    seen = heat >= 0
    if not seen.any():
        fail("the map is empty")
    best = (-2, 0, 0)
    level = np.where(seen, heat, heat[seen].mean())
    for dy in range(-4, 5):
        for dx in range(-4, 5):
            moved = np.roll(np.roll(level, dy, 0), dx, 1)[4:-4, 4:-4]
            best = max(best, (np.corrcoef(moved.ravel(), truth[4:-4, 4:-4].ravel())[0, 1], dy, dx))
    print(f"map: correlation with the truth {best[0]:.3f}, best when moved by {best[1]}, {best[2]} cells; top {heat.max():.3f}")
    if best[0] < 0.3 or abs(best[1]) > 1 or abs(best[2]) > 1:
        fail("the map does not lie on the changes")
    # nodata exactly where no window has data
    known = np.zeros(valid.shape, bool)
    for record in records:
        x, y, w, h = record["window"]
        if record["status"] == "ok" or record.get("reason") == "unchanged":
            known[y:y + h, x:x + w] = True
    for r in range(rows):
        for c in range(columns):
            y, x = int((r + 0.5) * pixel), int((c + 0.5) * pixel)
            near = valid[max(0, int(y - pixel)):int(y + pixel) + 1, max(0, int(x - pixel)):int(x + pixel) + 1]
            clear = near.all() or not near.any()
            if clear and seen[r, c] != (known[y, x] and bool(near.all())):
                fail(f"map pixel {r}, {c}: data {seen[r, c]}, expected {known[y, x] and bool(near.all())}")


def check(out, before, after):
    one, two, valid, transform, crs = common_grid(before, after)
    if one.max() > 255:
        one, two = one / 40, two / 40
    records = check_layer(out, transform, crs, valid.shape)
    check_geojson(out, crs, records)
    check_map(out, one, two, valid, transform, crs, records)


def equal(a, b):
    def load(path):
        records = [json.loads(line) for line in open(path)]
        for r in records:
            r.pop("timing_ms", None)
        return records
    if load(a) != load(b):
        fail(f"{a} and {b} differ")


if __name__ == "__main__":
    {"make": make, "levir": levir, "check": check, "equal": equal}[sys.argv[1]](*sys.argv[2:])
