"""Writes what PIL and torchvision make of small images when they resize and crop them, for the tests of data-cifar.

Versions used: Pillow 13.0.0, torchvision 0.26.0, torch 2.11.0, numpy 2.4.6.
    pip install pillow==13.0.0 torch==2.11.0 torchvision==0.26.0 safetensors
    python docs/parity/resampling.py crates/data-cifar/tests/golden/resampling.safetensors

Boxes are (top, left, height, width); filters are 0 nearest, 1 bilinear, 2 bicubic.
"""

import sys

import numpy as np
import torch
import torchvision.transforms.functional as F
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import InterpolationMode

FILTERS = [InterpolationMode.NEAREST, InterpolationMode.BILINEAR, InterpolationMode.BICUBIC]
rng = np.random.default_rng(7)


def pictures(count, height, width):
    """Gradients, noise, flat areas with sharp edges, and smooth blobs, as bytes [count, 3, height, width]."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    out = []
    for n in range(count):
        if n % 4 == 0:
            image = [255 * x, 255 * y, 255 * (1 - x) * y]
        elif n % 4 == 1:
            image = rng.integers(0, 256, (3, height, width))
        elif n % 4 == 2:
            image = [np.where((x * 5).astype(int) + (y * 4).astype(int) & 1, *rng.integers(0, 256, 2)) for _ in range(3)]
        else:
            image = [127 + 128 * np.sin(9 * x * rng.random() + 3) * np.cos(7 * y + 4 * rng.random()) for _ in range(3)]
            image = np.stack(image) + rng.normal(0, 6, (3, height, width))
        out.append(np.clip(np.stack(image), 0, 255).astype(np.uint8))
    return np.stack(out)


def pil(image):
    return Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))


def planes(image):
    return np.asarray(image).transpose(2, 0, 1)


def random_box(height, width):
    h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
    return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w


golden = {}


def keep(name, array):
    golden[name] = torch.from_numpy(np.ascontiguousarray(array))


# (input height and width) to (output height and width)
CROPS = [((32, 32), (32, 32)), ((29, 37), (13, 11)), ((13, 11), (24, 19)), ((40, 23), (17, 30)), ((24, 24), (16, 16))]
for number, ((height, width), size) in enumerate(CROPS):
    images = pictures(8, height, width)
    boxes = [random_box(height, width) for _ in images]
    boxes[0] = (0, 0, height, width)
    filters = rng.integers(0, 3, len(images))
    results = [
        planes(F.resized_crop(pil(image), *box, list(size), FILTERS[f]))
        for image, box, f in zip(images, boxes, filters)
    ]
    keep(f"crop.{number}.images", images)
    keep(f"crop.{number}.boxes", np.array(boxes, np.int64))
    keep(f"crop.{number}.filters", filters.astype(np.int64))
    keep(f"crop.{number}.results", np.stack(results))

RESIZES = [((31, 40), (15, 20)), ((15, 10), (10, 15)), ((9, 14), (30, 21)), ((33, 20), (12, 20)), ((48, 12), (6, 9))]
for number, ((height, width), (h, w)) in enumerate(RESIZES):
    images = pictures(4, height, width)
    keep(f"resize.{number}.images", images)
    for f, pil_filter in enumerate([Image.NEAREST, Image.BILINEAR, Image.BICUBIC]):
        results = [planes(pil(image).resize((w, h), pil_filter)) for image in images]
        keep(f"resize.{number}.results.{f}", np.stack(results))

images = pictures(8, 13, 10)
offsets = rng.integers(0, 7, (8, 2))
padded = [F.pad(pil(image), 3) for image in images]
keep("pad.images", images)
keep("pad.offsets", offsets.astype(np.int64))
keep("pad.results", np.stack([planes(F.crop(p, int(t), int(l), 13, 10)) for p, (t, l) in zip(padded, offsets)]))

for number, size in enumerate([(13, 10), (12, 9), (11, 8), (10, 7), (9, 6), (8, 5), (1, 1)]):
    keep(f"center.{number}.results", np.stack([planes(F.center_crop(pil(image), list(size))) for image in images]))

save_file(golden, sys.argv[1])
