"""Writes what timm's random erasing and mixup make of small batches, and how both are distributed, for the tests of
data-cifar.

Versions used: timm 1.0.31, torchvision 0.26.0, torch 2.11.0, numpy 2.4.6.
    pip install timm==1.0.31 torch==2.11.0 torchvision==0.26.0 safetensors
    python docs/parity/erasing_and_mixing.py crates/data-cifar/tests/golden/erasing_and_mixing.safetensors

Boxes are (top, left, height, width). What timm draws is either replaced by fixed numbers or listened to.
"""

import random
import sys

import numpy as np
import timm.data.mixup as timm_mixup
import torch
import torchvision
from safetensors.torch import save_file
from timm.data.random_erasing import RandomErasing

random.seed(11)
np.random.seed(12)
torch.manual_seed(13)
golden = {}


def moments(values):
    """Mean and variance of each column."""
    values = np.asarray(values, np.float64)
    return torch.from_numpy(np.stack([values.mean(0), values.var(0)]))


class Listener:
    """Notes the boxes that timm's random erasing draws: it asks for a row up to H - h, then a column up to W - w."""

    def __init__(self, height, width):
        self.rooms, self.sides, self.randint = [], (height, width), random.randint

    def __call__(self, low, high):
        value = self.randint(low, high)
        if low == 0:
            self.rooms.append((value, high))
        return value

    def boxes(self):
        (height, width), rooms = self.sides, self.rooms
        return [
            (top, left, height - room, width - other) for (top, room), (left, other) in zip(rooms[::2], rooms[1::2])
        ]


def erased(images, erasing):
    """The erased images, and the boxes of each."""
    out, boxes = [], []
    for image in images.clone():
        listener = random.randint = Listener(*image.shape[1:])
        out.append(erasing(image))
        random.randint = listener.randint
        boxes.append(listener.boxes())
    return torch.stack(out), boxes


# Zero in fixed boxes.
images = torch.randn(10, 3, 12, 15)
result, boxes = erased(images, RandomErasing(0.7, mode="const", max_count=3, device="cpu"))
golden["erase.images"], golden["erase.results"] = images, result
rows = [(n, *box) for n, of in enumerate(boxes) for box in of]
golden["erase.boxes"] = torch.tensor(rows)  # image, top, left, height, width

# How boxes are distributed in images of 24x40.
image, count = torch.zeros(1, 3, 24, 40), 40_000
for name, max_count in [("timm.1", 1), ("timm.3", 3)]:
    erasing = RandomErasing(0.25, mode="const", max_count=max_count, device="cpu")
    drawn = [erased(image, erasing)[1][0] for _ in range(count)]
    golden[f"erase.{name}.number"] = moments([[len(of)] for of in drawn])
    golden[f"erase.{name}.boxes"] = moments([(*box, box[2] * box[3]) for of in drawn for box in of])
erasing = torchvision.transforms.RandomErasing(p=1.0)
drawn = [erasing.get_params(image[0], erasing.scale, erasing.ratio, [0.0])[:4] for _ in range(count)]
drawn = [box for box in drawn if box != (0, 0, 24, 40)]  # no box was found
golden["erase.torchvision.boxes"] = moments([(*box, box[2] * box[3]) for box in drawn])

# Mixing with fixed numbers.
images, labels = torch.randn(8, 3, 9, 7), torch.tensor([0, 4, 2, 2, 1, 3, 0, 4])
golden["mix.images"], golden["mix.labels"] = images, labels
rand_bbox, noted = timm_mixup.rand_bbox, []


def noting(*args, **kwargs):
    top, bottom, left, right = box = rand_bbox(*args, **kwargs)
    noted.append((top, left, bottom - top, right - left))
    return box


timm_mixup.rand_bbox = noting
lambdas = np.array([0.3, 0.6, 1.0, 0.05, 0.9, 0.5, 0.45, 0.72], np.float32)
pastes = np.array([True, False, False, True, True, False, True, False])
cases = [
    ("batch", 0.1, 0.37, False),
    ("batch", 0.0, 0.37, True),
    ("pair", 0.1, lambdas[:4], pastes[:4]),
    ("elem", 0.2, lambdas, pastes),
]
for number, (mode, smoothing, lam, paste) in enumerate(cases):
    mixup = timm_mixup.Mixup(1.0, 1.0, mode=mode, label_smoothing=smoothing, num_classes=5)
    mixup._params_per_batch = lambda: (lam, paste)
    mixup._params_per_elem = lambda n: (lam.copy(), paste.copy())
    noted.clear()
    result, targets = mixup(images.clone(), labels)
    boxes = iter(noted)
    rows = []  # lambda, or -1 and a box: one row for the batch, each pair, or each image
    for lam_, paste_ in zip(np.atleast_1d(lam), np.atleast_1d(paste)):
        rows.append((-1.0, *next(boxes)) if paste_ else (float(lam_), 0, 0, 0, 0))
    golden[f"mix.{number}.drawn"] = torch.tensor(rows, dtype=torch.float64)
    golden[f"mix.{number}.smoothing"] = torch.tensor([smoothing], dtype=torch.float64)
    golden[f"mix.{number}.results"], golden[f"mix.{number}.targets"] = result, targets
timm_mixup.rand_bbox = rand_bbox

# How the label's weight is distributed in images of 24x40, elem by elem.
for name, settings in [
    ("mixup", dict(mixup_alpha=0.2)),
    ("cutmix", dict(mixup_alpha=0.0, cutmix_alpha=1.0, switch_prob=0.0)),
    ("both", dict(mixup_alpha=0.8, cutmix_alpha=0.4, prob=0.7, switch_prob=0.3)),
    ("minmax", dict(mixup_alpha=0.0, cutmix_minmax=(0.2, 0.8))),
]:
    mixup = timm_mixup.Mixup(mode="elem", label_smoothing=0.0, num_classes=2, **settings)
    blank = torch.zeros(2000, 1, 24, 40)
    weights = np.concatenate([mixup._mix_elem(blank.clone()).numpy().astype(np.float64) for _ in range(10)])
    unmixed = (weights == 1.0).astype(np.float64)
    golden[f"weights.{name}"] = moments(np.concatenate([weights, weights**2, unmixed], 1))

save_file({name: tensor.contiguous() for name, tensor in golden.items()}, sys.argv[1])
