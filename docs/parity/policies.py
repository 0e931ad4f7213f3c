"""Records which PIL calls timm and torchvision make for every outcome of their augmentation policies.

Each tensor is named `policy@heightxwidth`, with `@bicubic` behind it where timm is given an interpolation,
and has a row for each operation that a layer may come to:
    pair, layer, probability, code, six parameters, filter (0 nearest, 2 bilinear, 3 bicubic), red, green, blue
`pair` and `layer` are 0 but for `cifar10`, where 25 pairs are equally likely and have two layers each.
`code` is a place in CODES; a layer that does nothing is "None".

AutoAugment's pairs and probabilities are torchvision's table; the arguments are those of the code that
Compact-Transformers publishes (examples/utils/autoaug.py), which torchvision does not follow in all.

Versions used: Pillow 13.0.0, timm 1.0.31, torchvision 0.26.0, torch 2.11.0, numpy 2.4.6.
    python docs/parity/policies.py crates/data-cifar/tests/golden/policies.safetensors
"""

import sys
from unittest import mock

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from safetensors.numpy import save_file
from timm.data import auto_augment as timm_policies
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, RandAugment, TrivialAugmentWide

CODES = ["None", "AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd", "Brightness",
         "Contrast", "Color", "Sharpness", "Affine"]
MEAN = (125, 123, 114)
SIGNS = (0.25, 0.75)  # what timm's generator returns for + and for −


def row(name, *parameters, filter=0, fill=(0, 0, 0)):
    parameters = [float(p) + 0.0 for p in parameters]
    return (float(CODES.index(name)), *parameters, *[0.0] * (6 - len(parameters)), float(filter), *map(float, fill))


def calls(do, height, width):
    """The row of the one PIL call that `do` makes with an image."""
    rows = []

    def note(name, **place):
        return lambda image, *parameters: rows.append(row(name, *parameters, **place)) or image

    def transform(image, size, method, data, resample=0, fill=1, fillcolor=None):
        assert size == (width, height) and method == Image.Transform.AFFINE
        rows.append(row("Affine", *data, filter=resample, fill=fillcolor or (0, 0, 0)))
        return image

    def rotate(image, angle, resample=0, *rest, fillcolor=None, **more):
        if angle == 0:  # PIL copies
            return transform(image, image.size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, 0), resample, 1, fillcolor)
        if angle % 180 == 90 and width == height:  # PIL transposes, which moves the same pixels to the same places
            quarter = (0, -1, width, 1, 0, 0) if angle % 360 == 90 else (0, 1, 0, -1, 0, height)
            return transform(image, image.size, Image.Transform.AFFINE, quarter, resample, 1, fillcolor)
        return plain_rotate(image, angle, resample, *rest, fillcolor=fillcolor, **more)

    def point(image, table):
        add = table[0]
        assert table == [min(255, v + add) if v < 128 else v for v in range(256)] * 3
        rows.append(row("SolarizeAdd", add))
        return image

    def posterize(image, bits):
        # Fewer than 0 bits give black, as 0 do.
        rows.append(row("Posterize", max(0, bits)))
        return image

    plain_rotate = Image.Image.rotate
    with mock.patch.multiple(Image.Image, transform=transform, rotate=rotate, point=point), \
            mock.patch.multiple(ImageOps, posterize=posterize, autocontrast=note("AutoContrast"),
                                equalize=note("Equalize"), invert=note("Invert"), solarize=note("Solarize")):
        enhancers = [mock.patch.object(getattr(ImageEnhance, name), "enhance",
                                       lambda self, factor, name=name: rows.append(row(name, factor)) or image)
                     for name in ["Brightness", "Contrast", "Color", "Sharpness"]]
        image = Image.new("RGB", (width, height))
        for enhancer in enhancers:
            enhancer.start()
        do(image)
        for enhancer in enhancers:
            enhancer.stop()
    assert len(rows) <= 1, rows
    return rows[0] if rows else row("None")


def table(outcomes):
    """Rows with the probabilities of equal ones added up, from (pair, layer, probability, row)."""
    sums = {}
    for pair, layer, probability, outcome in outcomes:
        key = (float(pair), float(layer), outcome)
        sums[key] = sums.get(key, 0.0) + probability
    return np.array([(pair, layer, p, *outcome) for (pair, layer, outcome), p in sums.items() if p > 0])


def timm(text, magnitude, height, width, interpolation=None):
    hparams = dict(img_mean=MEAN, **({} if interpolation is None else dict(interpolation=interpolation)))
    policy = timm_policies.rand_augment_transform(text, hparams)
    assert policy.choice_weights is None
    for op in policy.ops:
        probability, op.prob = op.prob / len(policy.ops), 1.0
        yield 0, 0, 1 / len(policy.ops) - probability, row("None")
        op.magnitude = magnitude
        for sign in SIGNS:
            for choice in (0, 1):
                generator = mock.Mock(random=lambda: sign, choice=lambda of: of[choice])
                with mock.patch.object(timm_policies, "random", generator):
                    outcome = calls(op, height, width)
                if outcome == row("None"):  # timm does not call PIL to keep 8 bits or more
                    assert op.name == "Posterize"
                    outcome = row("Posterize", 8)
                yield 0, 0, probability / 4, outcome


def torchvision(magnitude, height, width):
    policy = RandAugment(num_ops=1, magnitude=magnitude)
    names = policy._augmentation_space(31, (height, width)).keys()
    for index in range(len(names)):
        for sign in (0, 1):
            with mock.patch.object(torch, "randint", side_effect=[torch.tensor([index]), torch.tensor([sign])]):
                yield 0, 0, 0.5 / len(names), calls(policy, height, width)


def trivial(height, width):
    policy = TrivialAugmentWide()
    bins = policy.num_magnitude_bins
    space = policy._augmentation_space(bins)
    for index, (magnitudes, _) in enumerate(space.values()):
        for magnitude in range(bins):
            for sign in (0, 1):
                # Whether a magnitude and a sign are drawn depends on the operation.
                drawn = [index, *[magnitude] * (magnitudes.ndim > 0), *[sign] * 2]
                with mock.patch.object(torch, "randint", side_effect=[torch.tensor([n]) for n in drawn]):
                    yield 0, 0, 0.5 / bins / len(space), calls(policy, height, width)


def cifar10(height, width):
    grey = (128, 128, 128)
    levels = {
        "ShearY": np.linspace(0, 0.3, 10),
        "TranslateX": np.linspace(0, 150 / 331, 10) * width,
        "TranslateY": np.linspace(0, 150 / 331, 10) * height,
        "Rotate": np.linspace(0, 30, 10),
        "Posterize": np.round(np.linspace(8, 4, 10)),
        "Solarize": np.linspace(256, 0, 10),
    }

    def outcome(name, level, sign):
        if name in ["AutoContrast", "Equalize", "Invert"]:
            return row(name)
        if name in ["Brightness", "Color", "Contrast", "Sharpness"]:
            return row(name, 1 + sign * np.linspace(0, 0.9, 10)[level])
        value = levels[name][level]
        if name == "ShearY":
            return row("Affine", 1, 0, 0, sign * value, 1, 0, filter=Image.Resampling.BICUBIC, fill=grey)
        if name == "TranslateX":
            return row("Affine", 1, 0, sign * value, 0, 1, 0, fill=grey)
        if name == "TranslateY":
            return row("Affine", 1, 0, 0, 0, 1, sign * value, fill=grey)
        if name == "Rotate":
            return calls(lambda image: image.rotate(value, fillcolor=grey), height, width)
        return row(name, value)

    for pair, layers in enumerate(AutoAugment(AutoAugmentPolicy.CIFAR10).policies):
        for layer, (name, probability, level) in enumerate(layers):
            yield pair, layer, 1 - probability, row("None")
            for sign in (1, -1):
                yield pair, layer, probability / 2, outcome(name, level, sign)


tables = {}
for magnitude in [0, 3, 5.5, 9, 10]:
    for increasing in ["", "-inc1"]:
        # timm's text has whole magnitudes only; noise makes others of them.
        tables[f"rand-m{magnitude}{increasing}@24x40"] = timm(f"rand{increasing}", magnitude, 24, 40)
for text, magnitude in [("rand-m17-mmax20", 17), ("rand-m17-mmax20-inc1", 17), ("rand-m12-inc1", 12),
                        ("rand-m8-n1-p0.3-inc1", 8), ("rand-m9-n3-p1", 9)]:
    tables[f"{text}@33x7"] = timm(text, magnitude, 33, 7)
tables["rand-m9-inc1@32x32@bicubic"] = timm("rand-m9-inc1", 9, 32, 32, Image.Resampling.BICUBIC)
for magnitude in [0, 3, 9, 12, 15, 30]:
    for height, width in [(24, 40), (331, 662)]:
        tables[f"torchvision-n2-m{magnitude}@{height}x{width}"] = torchvision(magnitude, height, width)
for height, width in [(32, 32), (24, 40)]:
    tables[f"trivialaugment@{height}x{width}"] = trivial(height, width)
    tables[f"cifar10@{height}x{width}"] = cifar10(height, width)

save_file({name: table(outcomes) for name, outcomes in tables.items()}, sys.argv[1])
