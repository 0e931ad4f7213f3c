"""Makes small picture files and what PIL, torchvision and timm make of them, for the tests of data-cifar.

Versions used: Pillow 13.0.0, torchvision 0.26.0, timm 1.0.31, torch 2.11.0, numpy 2.4.6.
    python docs/parity/decoding.py crates/data-cifar/tests/golden

Writes the files to GOLDEN/decoding/ and everything expected of them to GOLDEN/decoding.safetensors:
    pixels/FILE                   uint8 [H, W, 3]: Image.open(FILE).convert("RGB")
    source/N                      uint8 [H, W, 3]: a picture to be resized
    fit/N/MODE/FILTER/SIDE        uint8 [SIDE, SIDE, 3]: timm's evaluation transform of that picture, crop_pct 1
Grey PNGs of 16 bits are the exception: PIL clips their values at 255 and leaves a white picture, so that the upper
byte is expected there, as PIL itself takes it of colours.
"""

import io
import struct
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
                raw += b"\0" + row.astype(">u2" if depth == 16 else np.uint8).tobytes()
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def saved(image, kind, **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


files = {}
rgb = Image.fromarray(picture(27, 35))
exif = Image.Exif()
exif[0x0112] = 6  # to be turned by 90 degrees, which nobody does
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

expected = {}
for old in folder.iterdir():
    old.unlink()
for name, data in files.items():
    assert len(data) < 3072, (name, len(data))
    (folder / name).write_bytes(data)
    expected[f"pixels/{name}"] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
expected["pixels/png_16bit_grey.png"] = np.repeat((wide[..., :1] >> 8).astype(np.uint8), 3, 2)
(folder / "jpeg_cmyk.jpg").write_bytes(saved(tiny.convert("CMYK"), "JPEG"))

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
print(len(files) + 1, "files,", sum(map(len, files.values())), "bytes;", (golden / "decoding.safetensors").stat().st_size)
