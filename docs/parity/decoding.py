"""Makes small picture files and what PIL, torchvision and timm make of them, for the tests of data-cifar.

Versions used: Pillow 13.0.0, torchvision 0.29.2, timm 1.0.31, torch 2.15.0, numpy 2.4.6, and cjpeg of libjpeg-turbo 2.1.5.
    python docs/parity/decoding.py crates/data-cifar/tests/golden

Writes the files to GOLDEN/decoding/ and everything expected of them to GOLDEN/decoding.safetensors:
    pixels/FILE                   uint8 [H, W, 3]: Image.open(FILE).convert("RGB")
    source/N                      uint8 [H, W, 3]: a picture to be resized
    fit/N/MODE/FILTER/SIDE        uint8 [SIDE, SIDE, 3]: timm's evaluation transform of that picture, crop_pct 1
Grey pictures of 16 bits are the exception: PIL clips their values at 255 and leaves a white picture, so that the upper
byte is expected there, as PIL itself takes it of colours.
"""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from torchvision import transforms
from torchvision.transforms import InterpolationMode

golden = Path(sys.argv[1])
folder = golden / "decoding"
folder.mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(20)


def picture(height, width):
    """A gradient, a disc, a flat corner and noise, a little of everything a photograph has."""
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x / max(width - 1, 1)
    green = 255 * y / max(height - 1, 1)
    blue = np.where((x - width / 2) ** 2 + (y - height / 3) ** 2 < (min(height, width) / 3) ** 2, 230, 40)
    image = np.stack([red, green, blue], 2) + rng.normal(0, 12, (height, width, 3))
    image[: height // 3, : width // 3] = [200, 30, 90]
    return np.clip(image, 0, 255).astype(np.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def packed(rows, bits, order):
    """Rows of samples as bytes, each row of a whole number of them; 16 bits in the given byte order."""
    if bits == 16:
        return rows.astype(order + "u2").tobytes()
    split = rows.reshape(len(rows), -1, 1) >> np.arange(bits)[::-1] & 1
    return np.packbits(split.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def png(samples, color_type, depth, interlaced=False):
    """PNG bytes of samples [H, W, C], written out because PIL writes neither 16-bit colours nor Adam7."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, int(interlaced))
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    raw = b""
    for x, y, dx, dy in passes:
        for row in samples[y::dy, x::dx]:
            if row.size:
                raw += b"\0" + packed(row[None], depth, ">")
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff(samples, photometric, bits, order="<", planar=False, tile=None, deflate=False, tags=()):
    """TIFF bytes of samples [H, W, C], written out because PIL writes few of the kinds there are."""
    height, width, count = samples.shape
    step = tile or max(height, width)
    planes = [samples[..., c : c + 1] for c in range(count)] if planar else [samples]
    chunks = []
    for plane in planes:
        for y in range(0, height, step):
            for x in range(0, width, step):
                part = plane[y : y + step, x : x + step].astype(np.int64)
                if tile:
                    part = np.pad(part, [(0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)])
                if deflate:
                    part[:, 1:] -= part[:, :-1].copy()  # predictor 2
                rows = part.reshape(len(part), -1) % (1 << bits)
                data = packed(rows, bits, order)
                chunks.append(zlib.compress(data, 9) if deflate else data)
    ends = np.cumsum([8] + list(map(len, chunks))).tolist()
    fields = {256: [width], 257: [height], 258: [bits] * count, 259: [8 if deflate else 1], 262: [photometric], 277: [count]}
    fields |= {284: [1 + planar], 317: [1 + deflate], **dict(tags)}
    sizes = list(map(len, chunks))
    fields |= {322: [tile], 323: [tile], 324: ends[:-1], 325: sizes} if tile else {273: ends[:-1], 278: [step], 279: sizes}
    directory, behind = b"", b""
    after = ends[-1] + 2 + 12 * len(fields) + 4
    for tag, values in sorted(fields.items()):
        data = struct.pack(f"{order}{len(values)}H", *values)
        if len(data) > 4:
            data, behind = struct.pack(order + "I", after + len(behind)), behind + data
        directory += struct.pack(order + "HHI", tag, 3, len(values)) + data.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, ends[-1])
    return head + b"".join(chunks) + struct.pack(order + "H", len(fields)) + directory + bytes(4) + behind


def bmp(width, height, bits, pixels, compression=0, more=b""):
    """BMP bytes; `more` is what comes between the headers and the pixels."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 0, 0, 0, 0) + more
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + len(pixels), 0, 0, 14 + len(info)) + info + pixels


def gif(screen, place, indices, palette, local=b"", transparent=None):
    """GIF bytes of indices [H, W] of 7 bits, hardly compressed: the codes begin anew before they grow."""
    codes = [code for index in indices.ravel() for code in (128, int(index))] + [129]
    bits = np.array(codes)[:, None] >> np.arange(8) & 1
    data = np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()
    blocks = b"".join(bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255))
    flags = lambda palette: 128 + (len(palette) // 3).bit_length() - 2 if palette else 0
    control = b"" if transparent is None else b"!\xf9\x04\x01\0\0" + bytes([transparent, 0])
    frame = b"," + struct.pack("<HHHHB", *place, *indices.shape[::-1], flags(local)) + local + b"\x07" + blocks + b"\0"
    return b"GIF89a" + struct.pack("<HHBBB", *screen, flags(palette), 0, 0) + palette + control + frame + b";"


def cjpeg(image, *options):
    """JPEG bytes of the kinds that PIL does not write."""
    return subprocess.run(["cjpeg", *options], input=saved(image, "PPM"), capture_output=True, check=True).stdout


def saved(image, kind, **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


files = {}
rgb = Image.fromarray(picture(27, 35))
exif = Image.Exif()
exif[0x0112] = 6  # to be turned by 90 degrees, which nobody does but in a TIFF
for name, options in {
    "jpeg_420": dict(subsampling=2),
    "jpeg_422": dict(subsampling=1),
    "jpeg_444": dict(subsampling=0),
    "jpeg_444_best": dict(subsampling=0, quality=98),
    "jpeg_progressive": dict(subsampling=2, progressive=True),
    "jpeg_restart": dict(subsampling=2, restart_marker_blocks=2),
    "jpeg_orientation": dict(exif=exif),
}.items():
    files[name + ".jpg"] = saved(rgb, "JPEG", **options)
files["jpeg_grey.jpg"] = saved(rgb.convert("L"), "JPEG")
files["jpeg_grey_progressive.jpg"] = saved(rgb.convert("L"), "JPEG", progressive=True)
files["jpeg_1x1.jpg"] = saved(rgb.crop((9, 9, 10, 10)), "JPEG")
files["jpeg_17x1.jpg"] = saved(rgb.crop((9, 9, 26, 10)), "JPEG")

tiny = Image.fromarray(picture(15, 13))
alpha = np.concatenate([picture(15, 13), rng.integers(0, 256, (15, 13, 1), dtype=np.uint8)], 2)
alpha[:, :4, 3] = 0
rgba = Image.fromarray(alpha)
wide = rng.integers(0, 65536, (15, 13, 4), dtype=np.uint16)
files["png_rgb.png"] = saved(tiny, "PNG")
files["png_rgba.png"] = saved(rgba, "PNG")
files["png_grey.png"] = saved(tiny.convert("L"), "PNG")
files["png_grey_alpha.png"] = saved(rgba.convert("LA"), "PNG")
files["png_bilevel.png"] = saved(tiny.convert("1"), "PNG")
files["png_palette.png"] = saved(tiny.quantize(11), "PNG")
files["png_palette_transparent.png"] = saved(tiny.quantize(11), "PNG", transparency=3)
files["png_grey_transparent.png"] = saved(tiny.convert("L"), "PNG", transparency=40)
files["png_interlaced.png"] = png(np.asarray(tiny), 2, 8, interlaced=True)
files["png_16bit_rgb.png"] = png(wide[..., :3], 2, 16)
files["png_16bit_rgba.png"] = png(wide, 6, 16)
files["png_16bit_grey.png"] = png(wide[..., :1], 0, 16)
files["png_animated.png"] = saved(tiny, "PNG", save_all=True, append_images=[Image.new("RGB", tiny.size, "red")])

files["bmp_rgb.bmp"] = saved(tiny, "BMP")
files["bmp_palette.bmp"] = saved(tiny.quantize(11), "BMP")
files["bmp_grey.bmp"] = saved(tiny.convert("L"), "BMP")
files["bmp_bilevel.bmp"] = saved(tiny.convert("1"), "BMP")
files["bmp_rgba.bmp"] = saved(rgba, "BMP")

files["webp_lossless.webp"] = saved(rgb, "WEBP", lossless=True)
files["webp_lossless_alpha.webp"] = saved(rgba, "WEBP", lossless=True, exact=True)
files["webp_lossy.webp"] = saved(rgb, "WEBP", quality=80)
files["webp_lossy_alpha.webp"] = saved(rgba, "WEBP", quality=80)
files["webp_animated.webp"] = saved(
    tiny, "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", tiny.size, "red")]
)

# What follows draws from its own generator, so that everything above and below stays as it was.
more = np.random.default_rng(21)
inks = more.integers(0, 256, (5, 6, 4), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
cmyk = saved(Image.fromarray(inks, "CMYK"), "JPEG", quality=90)
adobe = cmyk.index(b"\xff\xee\x00\x0eAdobe")
files["jpeg_cmyk.jpg"] = cmyk
files["jpeg_cmyk_no_marker.jpg"] = cmyk[:adobe] + cmyk[adobe + 16 :]
files["jpeg_ycck.jpg"] = cmyk[: adobe + 15] + b"\x02" + cmyk[adobe + 16 :]
files["jpeg_arithmetic.jpg"] = cjpeg(rgb, "-arithmetic")
files["jpeg_arithmetic_progressive.jpg"] = cjpeg(rgb, "-arithmetic", "-progressive")
files["jpeg_440.jpg"] = cjpeg(rgb, "-sample", "1x2")
files["jpeg_rgb.jpg"] = saved(rgb, "JPEG", keep_rgb=True)
files["jpeg_end_lost.jpg"] = files["jpeg_420.jpg"][:-2] + bytes(9)
files["jpeg_mpo.jpg"] = saved(tiny, "MPO", save_all=True, append_images=[Image.new("RGB", tiny.size, "red")])

levels = {bits: more.integers(0, 1 << bits, (9, 11, 1)) for bits in [1, 2, 4, 8]}
for bits in [2, 4]:
    files[f"png_grey_{bits}bit.png"] = png(levels[bits], 0, bits)

all_levels = np.arange(64)
for name, masks in {"565": [0xF800, 0x7E0, 0x1F], "555": [0x7C00, 0x3E0, 0x1F]}.items():
    pixels = more.permutation(1 << 16)[: 64 * 10]
    pixels[:64] = all_levels << 10 & 0xF800 | all_levels << 5 | all_levels >> 1
    data = pixels.astype("<u2").tobytes()
    files[f"bmp_{name}.bmp"] = bmp(64, -10, 16, data, 3, struct.pack("<III", *masks))
files["bmp_16bit.bmp"] = bmp(64, 10, 16, data)
runs = b"".join(bytes([5, 10 * y + 7, 0, 3, y, 3, 9, 0, 0, 0]) for y in range(6)) + b"\0\1"
files["bmp_rle8.bmp"] = bmp(8, 6, 8, runs, 1, more.bytes(1024))
files["bmp_rgbx_masks.bmp"] = bmp(4, 4, 32, more.bytes(64), 3, struct.pack("<III", 0xFF000000, 0xFF0000, 0xFF00))

quantized = tiny.quantize(20)
files["gif.gif"] = saved(quantized, "GIF")
files["gif_grey.gif"] = saved(tiny.convert("L"), "GIF")
files["gif_interlaced.gif"] = saved(quantized, "GIF", interlace=1)
files["gif_transparent.gif"] = saved(quantized, "GIF", transparency=3)
files["gif_animated.gif"] = saved(quantized, "GIF", save_all=True, append_images=[Image.new("RGB", tiny.size, "red")])
indices = more.integers(0, 128, (7, 10))
palette, short, grey = more.bytes(384), more.bytes(96), bytes(i // 3 for i in range(384))
files["gif_small_on_screen.gif"] = gif((16, 12), (3, 2), indices, palette)
files["gif_small_transparent.gif"] = gif((16, 12), (3, 2), indices, palette, transparent=9)
files["gif_beyond_screen.gif"] = gif((6, 5), (2, 1), indices, palette)
files["gif_local_palette.gif"] = gif((10, 7), (0, 0), indices, palette, local=more.bytes(384))
files["gif_short_palette.gif"] = gif((10, 7), (0, 0), indices, short)
files["gif_short_grey.gif"] = gif((10, 7), (0, 0), indices, grey[:96])

files["tiff.tif"] = saved(tiny, "TIFF")
files["tiff_multi.tif"] = saved(tiny, "TIFF", save_all=True, append_images=[Image.new("RGB", tiny.size, "red")])
files["tiff_big.tif"] = saved(tiny, "TIFF", big_tiff=True)
files["tiff_lzw.tif"] = saved(tiny, "TIFF", compression="tiff_lzw", tiffinfo={317: 2})
files["tiff_packbits.tif"] = saved(tiny.convert("L"), "TIFF", compression="packbits")
files["tiff_group4.tif"] = saved(tiny.convert("1"), "TIFF", compression="group4")
files["tiff_palette.tif"] = saved(tiny.quantize(11), "TIFF", compression="tiff_adobe_deflate")
files["tiff_rgba.tif"] = saved(rgba, "TIFF")
files["tiff_cmyk.tif"] = saved(Image.fromarray(inks, "CMYK"), "TIFF", compression="tiff_lzw")
for orientation in range(1, 9):
    files[f"tiff_orientation_{orientation}.tif"] = saved(tiny.crop((0, 0, 5, 3)), "TIFF", tiffinfo={274: orientation})
table = more.integers(0, 65536, 3 << 8).tolist()
for bits, samples in levels.items():
    files[f"tiff_grey_{bits}bit.tif"] = tiff(samples, 1, bits)
    files[f"tiff_white_is_zero_{bits}bit.tif"] = tiff(samples, 0, bits, order=">")
    files[f"tiff_palette_{bits}bit.tif"] = tiff(samples, 3, bits, tags={320: table[: 3 << bits]})
bytes4, words4 = (more.integers(0, 1 << bits, (21, 19, 4)) for bits in [8, 16])
files["tiff_planes.tif"] = tiff(bytes4[..., :3], 2, 8, planar=True)
files["tiff_tiles.tif"] = tiff(bytes4[..., :3], 2, 8, tile=16)
files["tiff_tiles_deflate.tif"] = tiff(bytes4[..., :3], 2, 8, ">", tile=16, deflate=True)
files["tiff_extra.tif"] = tiff(bytes4, 2, 8, deflate=True, tags={338: [0]})
files["tiff_premultiplied.tif"] = tiff(bytes4, 2, 8, tags={338: [1]})
files["tiff_16bit_rgb.tif"] = tiff(words4[..., :3], 2, 16, ">")
files["tiff_16bit_rgb_deflate.tif"] = tiff(words4[..., :3], 2, 16, deflate=True)
files["tiff_16bit_premultiplied.tif"] = tiff(words4, 2, 16, tags={338: [1]})
files["tiff_16bit_cmyk.tif"] = tiff(words4, 5, 16)
files["tiff_16bit_grey.tif"] = tiff(words4[..., :1], 1, 16)

# Its first picture has an offset and is to be blended with what is below it, where there is nothing.
still = saved(rgba, "WEBP", lossless=True, exact=True)
area = b"".join(struct.pack("<I", value)[:3] for value in [2, 3, rgba.width - 1, rgba.height - 1, 100])
picture_chunk = still[still.index(b"VP8L") :]
frame = b"ANMF" + struct.pack("<I", 16 + len(picture_chunk)) + area + b"\0" + picture_chunk
canvas = struct.pack("<I", 29)[:3] + struct.pack("<I", 39)[:3]
chunks = b"VP8X" + struct.pack("<I", 10) + b"\x12\0\0\0" + canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6) + frame * 2
files["webp_animated_blended.webp"] = b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks

expected = {}
for old in folder.iterdir():
    old.unlink()
for name, data in files.items():
    assert len(data) < 4096, (name, len(data))
    (folder / name).write_bytes(data)
    expected[f"pixels/{name}"] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
for name, samples in {"png_16bit_grey.png": wide, "tiff_16bit_grey.tif": words4}.items():
    expected[f"pixels/{name}"] = np.repeat((samples[..., :1] >> 8).astype(np.uint8), 3, 2)

filters = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
for n, (height, width) in enumerate([(41, 64), (53, 29), (16, 16), (7, 90), (33, 32), (32, 32)]):
    source = picture(height, width)
    expected[f"source/{n}"] = source
    for side in [16, 32]:
        for name, mode in filters.items():
            for crop_mode, steps in {
                "center": [transforms.Resize(side, mode), transforms.CenterCrop(side)],
                "squash": [transforms.Resize((side, side), mode)],
                "border": [ResizeKeepRatio(side, longest=1.0, interpolation=name), CenterCropOrPad(side, fill=(9, 99, 199))],
            }.items():
                out = transforms.Compose(steps)(Image.fromarray(source))
                assert out.size == (side, side)
                expected[f"fit/{n}/{crop_mode}/{name}/{side}"] = np.asarray(out)

save_file({name: np.ascontiguousarray(value) for name, value in expected.items()}, golden / "decoding.safetensors")
print(len(files), "files,", sum(map(len, files.values())), "bytes;", (golden / "decoding.safetensors").stat().st_size)
