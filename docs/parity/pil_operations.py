"""Writes what PIL makes of small images with every operation of data-cifar's `Op`, for its tests.

The file has, for two sets of images, `{set}.images` [K, 3, H, W], `{set}.ops` [N, 12] and `{set}.results`
[N, K, 3, H, W]. A row of `ops` is: which operation (its place in OPERATIONS), which filter (nearest, bilinear,
bicubic), red, green and blue of the fill, parameters.

Versions used: Pillow 13.0.0, numpy 2.4.6, safetensors 0.8.0.
    pip install pillow numpy safetensors
    python docs/parity/pil_operations.py crates/data-cifar/tests/golden/pil_operations.safetensors
"""

import sys

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from safetensors.numpy import save_file

FILTERS = [Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC]


def posterize(image, bits):
    # Pillow 13 refuses 0 bits; what it did before is a mask of no bits.
    return ImageOps.posterize(image, int(bits)) if bits else image.point([0] * 768)


def solarize_add(image, add):
    return image.point([min(255, i + int(add)) if i < 128 else i for i in range(256)] * 3)


def hue(image, shift):
    # What torchvision's adjust_hue does to a PIL image, with shift for its int(hue_factor * 255).
    hsv = np.array(image.convert("HSV"))
    hsv[..., 0] += np.uint8(shift)
    return Image.fromarray(hsv, "HSV").convert("RGB")


def affine(image, *matrix, resample, fillcolor):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=fillcolor)


def shear_x(image, factor, **how):
    return affine(image, 1, factor, 0, 0, 1, 0, **how)


def shear_y(image, factor, **how):
    return affine(image, 1, 0, 0, factor, 1, 0, **how)


def translate_x(image, pixels, **how):
    return affine(image, 1, 0, pixels, 0, 1, 0, **how)


def translate_y(image, pixels, **how):
    return affine(image, 1, 0, 0, 0, 1, pixels, **how)


OPERATIONS = [
    lambda image: ImageOps.autocontrast(image),
    lambda image: ImageOps.equalize(image),
    lambda image: ImageOps.invert(image),
    posterize,
    lambda image, threshold: ImageOps.solarize(image, threshold),
    solarize_add,
    lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    hue,
    affine,
    lambda image, degrees, **how: image.rotate(degrees, **how),
    shear_x,
    shear_y,
    translate_x,
    translate_y,
]
AFFINE = OPERATIONS.index(affine)


def apply(image, row):
    operation, resample, fill, parameters = int(row[0]), int(row[1]), row[2:5], row[5:]
    function = OPERATIONS[operation]
    if operation >= AFFINE:
        how = {"resample": FILTERS[resample], "fillcolor": tuple(int(value) for value in fill)}
        return function(image, *parameters[: 6 if operation == AFFINE else 1], **how)
    return function(image, *parameters[: function.__code__.co_argcount - 1])


def results(images, rows):
    def one(image, row):
        made = apply(Image.fromarray(image.transpose(1, 2, 0)), row)
        return np.asarray(made).transpose(2, 0, 1)

    return np.stack([np.stack([one(image, row) for image in images]) for row in rows])


def row(operation, *parameters, resample=0, fill=(0, 0, 0)):
    return np.array([operation, resample, *fill, *parameters] + [0] * (7 - len(parameters)), np.float64)


FACTORS = [0.0, 0.1, 0.73, 1.0, 1.9]
COLOURS = [row(0), row(1), row(2)]
COLOURS += [row(3, bits) for bits in [0, 1, 4, 7, 8]]
COLOURS += [row(4, threshold) for threshold in [0, 77.5, 128, 256]]
COLOURS += [row(5, add) for add in [0, 37, 110, 200]]
COLOURS += [row(operation, factor) for operation in [6, 7, 8, 9] for factor in FACTORS]
COLOURS += [row(10, shift) for shift in [0, 1, 100, 128, 250]]

WARPS = [(12, degrees) for degrees in [0, 17.3, -30, 45, 90, 180, 270, 359.9]]
WARPS += [(operation, factor) for operation in [13, 14] for factor in [0.3, -0.27]]
WARPS += [(operation, pixels) for operation in [15, 16] for pixels in [4.5, -2, 3.3, 40]]
WARPS += [
    (11, 1.3, 0.2, -2, -0.1, 0.8, 1.5),
    (11, 0.5, 0, 1, 0, 2, -3),
    (11, -1, 0, 13, 0, 0.7, 1.1),
    (11, 1, 0.3, -1.65, 0, 1, 0),
    (11, 1, 0, 0, -0.21, 1, 2.4),
    (11, 0, 0, 1.5, 0, 0, 3.25),
    (11, 1e5, 3, 2, 1, 1e5, 1),
]


def smooth(rng, height, width):
    """A few waves per channel, like a blurred photograph."""
    y, x = np.mgrid[:height, :width]
    waves = np.zeros((3, height, width))
    for _ in range(5):
        (across, down), phase = rng.uniform(0, 0.6, 2), rng.uniform(0, 6, (3, 1, 1))
        waves += rng.uniform(10, 40, (3, 1, 1)) * np.sin(across * x + down * y + phase)
    return np.clip(128 + waves + rng.normal(0, 4, waves.shape), 0, 255).astype(np.uint8)


def main():
    rng = np.random.default_rng(0)
    height, width = 11, 13
    noise = rng.integers(0, 256, (3, height, width), np.uint8)
    # A gradient with a flat rectangle and pixels that are black or white.
    blocks = np.stack([np.add.outer(np.arange(height) * a, np.arange(width) * b) for a, b in [(20, 1), (3, 17), (0, 5)]])
    blocks = np.where(rng.random(blocks.shape) < 0.1, rng.choice([0, 255], blocks.shape), blocks).astype(np.uint8)
    blocks[:, 4:9, 5:11] = np.array([200, 31, 7])[:, None, None]
    small = np.stack([noise, blocks, smooth(rng, height, width)])
    rows = COLOURS[:-5] + [row(10, 100)]
    rows += [row(*warp, resample=resample, fill=(128, 17, 240)) for warp in WARPS for resample in range(3)]

    height, width = 24, 22
    flat = np.full((3, height, width), np.array([9, 255, 0])[:, None, None], np.uint8)
    dull = rng.integers(100, 111, (3, height, width), np.uint8)
    large = np.stack([smooth(rng, height, width), rng.integers(0, 256, flat.shape, np.uint8), flat, dull])
    large_rows = [row(0), row(1), row(7, 0.1), row(8, 1.9), row(9, 1.9)] + COLOURS[-5:]

    tensors = {}
    for name, images, rows in [("small", small, rows), ("large", large, large_rows)]:
        tensors[f"{name}.images"] = images
        tensors[f"{name}.ops"] = np.stack(rows)
        tensors[f"{name}.results"] = results(images, rows)
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, sys.argv[1])


if __name__ == "__main__":
    main()
