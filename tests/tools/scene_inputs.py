#!/usr/bin/python3
"""Images for tests/integration/test_decoder.c: scene_inputs.py DIR GROUP. Exit code 77: no GDAL for Python.

The ground is a formula over UTM zone 33 coordinates, so that an image on any grid can be drawn exactly, pixel centre by pixel centre.
"""
import os
import struct
import sys
import zlib

try:
    import numpy as np
    from osgeo import gdal, osr
except ImportError:
    sys.exit(77)
gdal.UseExceptions()
gdal.SetConfigOption('GDAL_TIFF_INTERNAL_MASK', 'YES')
gdal.SetConfigOption('GDAL_PAM_ENABLED', 'NO')

DIR = sys.argv[1]
X0, Y0, SIDE, M = 500000.0, 5000000.0, 512, 2.0  # the before image: 512 pixels of 2 m


def crs(code):
    s = osr.SpatialReference()
    s.ImportFromEPSG(code)
    s.SetAxisMappingStrategy(osr.OAMS_TRADITIONAL_GIS_ORDER)
    return s


def ground(x, y):
    """Waves of 40 to 90 m in several directions, unlike each other in three bands; 0..1."""
    u, v = x - X0, y - Y0
    a = np.sin(u / 9.1 + 0.7 * np.sin(v / 31)) * np.cos(v / 8.3 + np.sin(u / 57))
    b = np.sin((u + v) / 11.7) * np.cos((u - 2 * v) / 23.9)
    c = np.cos(u / 14.3) * np.sin(v / 12.1 + u / 91)
    return [0.5 + 0.24 * p + 0.24 * q for p, q in ((a, b), (b, c), (c, a))]


def rough(x, y):
    """Waves of 8 to 200 m in all directions: a spectrum like that of real ground."""
    random = np.random.RandomState(7)
    total = np.zeros_like(x)
    for _ in range(60):
        wave, turn, start = 8 * 25 ** random.rand(), 6.2832 * random.rand(), 6.2832 * random.rand()
        total += np.sqrt(wave) * np.sin(6.2832 / wave * ((x - X0) * np.cos(turn) + (y - Y0) * np.sin(turn)) + start)
    return [np.clip(0.5 + 0.008 * total, 0, 1)] * 3


def draw(gt, w, h, code, formula=ground):
    cols, rows = np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5)
    x = gt[0] + cols * gt[1] + rows * gt[2]
    y = gt[3] + cols * gt[4] + rows * gt[5]
    if code != 32633:
        t = osr.CoordinateTransformation(crs(code), crs(32633))
        points = np.array(t.TransformPoints(np.stack([x.ravel(), y.ravel()], 1)))
        x, y = points[:, 0].reshape(h, w), points[:, 1].reshape(h, w)
    return formula(x, y)


def write(name, bands, gt, code, kind=gdal.GDT_Byte, options=(), nodata=None, alpha=None, mask=None, driver='GTiff'):
    h, w = bands[0].shape
    n = len(bands) + (alpha is not None)
    path = os.path.join(DIR, name)
    mem = gdal.GetDriverByName('MEM').Create('', w, h, n, kind)
    if gt:
        mem.SetGeoTransform(gt)
    if code:
        mem.SetProjection(crs(code).ExportToWkt())
    for i, b in enumerate(bands):
        mem.GetRasterBand(i + 1).WriteArray(b)
        if nodata is not None:
            mem.GetRasterBand(i + 1).SetNoDataValue(nodata)
    if alpha is not None:
        mem.GetRasterBand(n).WriteArray(alpha)
        mem.GetRasterBand(n).SetColorInterpretation(gdal.GCI_AlphaBand)
    if mask is not None:
        mem.CreateMaskBand(gdal.GMF_PER_DATASET)
        mem.GetRasterBand(1).GetMaskBand().WriteArray(mask)
    gdal.GetDriverByName(driver).CreateCopy(path, mem, options=list(options))


def bytes_of(g):
    return [np.rint(255 * b).astype(np.uint8) for b in g]


GT = (X0, M, 0, Y0, 0, -M)
PLAIN = draw(GT, SIDE, SIDE, 32633)


def aligned():
    gt = (X0 + 37 * M, M, 0, Y0 - 21 * M, 0, -M)  # the same grid, another extent
    write('offset.tif', bytes_of(draw(gt, 400, 600, 32633)), gt, 32633)
    gt = (X0 + 0.31, 1.0, 0, Y0 + 0.77, 0, -1.0)  # finer and off the grid
    write('fine.tif', bytes_of(draw(gt, 1100, 1100, 32633)), gt, 32633, options=['TILED=YES'])
    t = osr.CoordinateTransformation(crs(32633), crs(4326))
    lon, lat, _ = t.TransformPoint(X0 - 60, Y0 + 60)
    gt = (lon, 2.0 / 79000, 0, lat, 0, -2.0 / 111100)
    write('degrees.tif', bytes_of(draw(gt, 620, 620, 4326)), gt, 4326)
    t = osr.CoordinateTransformation(crs(32633), crs(3857))
    x, y, _ = t.TransformPoint(X0 - 60, Y0 + 60)
    gt = (x, 2.9, 0, y, 0, -2.9)
    scaled = [(1000 + 3000 * b).astype(np.uint16) for b in draw(gt, 640, 640, 3857)]
    write('mercator16.tif', scaled, gt, 3857, gdal.GDT_UInt16, ['TILED=YES', 'PREDICTOR=2', 'COMPRESS=LZW'])
    t = osr.CoordinateTransformation(crs(32633), crs(32632))
    x, y, _ = t.TransformPoint(X0 - 60, Y0 + 60)
    gt = (x, 1.9, 0.15, y, 0.15, -1.9)  # a rotated grid of the neighbouring zone
    write('rotated.tif', [b.astype(np.float32) for b in draw(gt, 640, 700, 32632)], gt, 32632, gdal.GDT_Float32)
    write('same.jp2', bytes_of(PLAIN), GT, 32633, driver='JP2OpenJPEG', options=['REVERSIBLE=YES', 'QUALITY=100'])
    write('same.png', bytes_of(PLAIN), None, None, driver='PNG')
    with open(os.path.join(DIR, 'same.pgw'), 'w') as f:
        f.write(f'{M}\n0.0\n0.0\n{-M}\n{X0 + M / 2}\n{Y0 - M / 2}\n')


def shifts():
    for name, dx, dy in (('rough.tif', 0, 0), ('shifted.tif', 3.4, -2.25), ('shifted_more.tif', -17.0, 9.5)):
        moved = (X0 - dx * M, M, 0, Y0 + dy * M, 0, -M)
        write(name, bytes_of(draw(moved, SIDE, SIDE, 32633, rough)), GT, 32633)


def holes():
    """Columns 100..199 are missing, each in another way."""
    b = bytes_of(PLAIN)
    hole = np.full((SIDE, SIDE), 255, np.uint8)
    hole[:, 100:200] = 0
    zero = [np.where(hole == 0, 0, np.maximum(x, 1)) for x in b]
    write('hole_nodata.tif', zero, GT, 32633, nodata=0)
    write('hole_alpha.tif', b, GT, 32633, alpha=hole)
    write('hole_mask.tif', b, GT, 32633, mask=hole)
    nan = [np.where(hole == 0, np.nan, x).astype(np.float32) for x in PLAIN]
    write('hole_nan.tif', nan, GT, 32633, gdal.GDT_Float32)
    off = (X0 + 0.5 * M, M, 0, Y0, 0, -M)  # half a pixel: these are warped
    write('hole_nodata_warped.tif', zero, off, 32633, nodata=0)
    write('hole_alpha_warped.tif', b, off, 32633, alpha=hole)
    write('hole_mask_warped.tif', b, off, 32633, mask=hole)
    write('hole_nan_warped.tif', nan, off, 32633, gdal.GDT_Float32)


def chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


def hostile():
    far = (X0 + 90000, M, 0, Y0, 0, -M)
    write('far.tif', bytes_of(draw(far, 64, 64, 32633)), far, 32633)
    write('bare.png', [b[:64, :64] for b in bytes_of(PLAIN)], None, None, driver='PNG')
    whole = open(os.path.join(DIR, 'before.tif'), 'rb').read()
    with open(os.path.join(DIR, 'cut.tif'), 'wb') as f:  # its directory at the end is gone
        f.write(whole[:len(whole) // 2])
    with open(os.path.join(DIR, 'words.tif'), 'wb') as f:
        f.write(b'II*\0' + b'\xff' * 400)
    open(os.path.join(DIR, 'nothing.tif'), 'w').close()
    os.mkfifo(os.path.join(DIR, 'pipe.tif'))
    vrt = f'<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>' \
          f'{DIR}/before.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>'
    for name in ('vrt.tif', 'vrt.png'):
        with open(os.path.join(DIR, name), 'w') as f:
            f.write(vrt)
    ds = gdal.GetDriverByName('GTiff').Create(os.path.join(DIR, 'sparse.tif'), 200000, 200000, 1, gdal.GDT_Byte,
                                              ['SPARSE_OK=TRUE', 'TILED=YES', 'BLOCKXSIZE=4096', 'BLOCKYSIZE=4096', 'BIGTIFF=YES'])
    ds.SetGeoTransform(GT)
    ds = None
    ds = gdal.GetDriverByName('GTiff').Create(os.path.join(DIR, 'empty.tif'), 60000, 60000, 1, gdal.GDT_Byte,
                                              ['SPARSE_OK=TRUE', 'TILED=YES', 'BLOCKXSIZE=1024', 'BLOCKYSIZE=1024'])
    ds.SetGeoTransform(GT)
    ds = None
    ds = gdal.GetDriverByName('GTiff').Create(os.path.join(DIR, 'block.tif'), 20000, 20000, 1, gdal.GDT_Byte,
                                              ['SPARSE_OK=TRUE', 'TILED=YES', 'BLOCKXSIZE=16384', 'BLOCKYSIZE=16384', 'COMPRESS=DEFLATE'])
    ds.SetGeoTransform(GT)
    ds = None
    side = 20000  # 400 MB of zeros in less than 400 KB
    z = zlib.compressobj(9)
    line = bytes(1 + side)
    data = b''.join(z.compress(line) for _ in range(side)) + z.flush()
    with open(os.path.join(DIR, 'bomb.png'), 'wb') as f:
        f.write(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0)) + chunk(b'IDAT', data) +
                chunk(b'IEND', b''))


def sidecars():
    """Everything GDAL likes to look for beside a file."""
    os.mkdir(os.path.join(DIR, 'inside'))
    os.mkdir(os.path.join(DIR, 'outside'))
    write('inside/a.tif', bytes_of(PLAIN), GT, 32633)
    write('inside/a.png', bytes_of(PLAIN), None, None, driver='PNG')
    write('outside/secret.tif', bytes_of(PLAIN), GT, 32633)
    for base in ('a.tif', 'a.png'):
        for end in ('.ovr', '.msk', '.aux.xml', '.aux'):
            os.symlink('../outside/secret.tif', os.path.join(DIR, 'inside', base + end))
    for end in ('.aux', '.ovr', '.msk', '.IMD', '.RPB', '_RPC.TXT', '.tab', '.prj', '.wld.xml'):
        os.symlink('../outside/secret.tif', os.path.join(DIR, 'inside', 'a' + end))
    os.symlink('../outside/secret.tif', os.path.join(DIR, 'inside', 'link.tif'))
    os.symlink('../outside', os.path.join(DIR, 'inside', 'dir'))
    write('inside/w.png', bytes_of(PLAIN), None, None, driver='PNG')
    os.symlink('../outside/secret.tif', os.path.join(DIR, 'inside', 'w.pgw'))


def layouts():
    write('strips.tif', bytes_of(PLAIN), GT, 32633, options=['TILED=NO', 'BLOCKYSIZE=7', 'COMPRESS=LZW', 'INTERLEAVE=BAND'])
    write('strip.tif', bytes_of(PLAIN), GT, 32633, options=['TILED=NO', 'BLOCKYSIZE=%d' % SIDE])
    write('lines.tif', bytes_of(PLAIN), GT, 32633, options=['TILED=NO', 'BLOCKYSIZE=1', 'COMPRESS=PACKBITS', 'ENDIANNESS=BIG'])
    write('big.tif', bytes_of(PLAIN), GT, 32633, options=['TILED=YES', 'BIGTIFF=YES', 'COMPRESS=ZSTD', 'BLOCKXSIZE=16', 'BLOCKYSIZE=16'])


write('before.tif', bytes_of(PLAIN), GT, 32633, options=['TILED=YES', 'COMPRESS=DEFLATE'])
half = (X0 + M / 2, M, 0, Y0 - M / 2, 0, -M)
write('half.tif', bytes_of(draw(half, SIDE, SIDE, 32633)), half, 32633)  # between the pixels: warped
{'none': lambda: None, 'aligned': aligned, 'holes': holes, 'shifts': shifts, 'hostile': hostile, 'sidecars': sidecars,
 'layouts': layouts}[sys.argv[2]]()
