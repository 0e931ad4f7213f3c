"""Images per second of the CCT paper's training pipeline as timm and torchvision do it, image by image.

    pip install torch==2.11.0 torchvision==0.26.0 timm==1.0.31 pillow numpy
    python docs/parity/cct_pipeline_speed.py DIRECTORY_WITH_data_batch_1.bin [REPETITIONS]

RandomResizedCrop to 32×32 with scale 0.8 to 1 and a random filter, flip, RandAugment rand-m9-mstd0.5-inc1,
normalisation, then mixup 0.8 / CutMix 1.0 on batches of 128, over 10,000 images of CIFAR-10 that are in
memory. Prints the median of the repetitions for each number of worker processes, and the best of them. The same
pipeline here: cargo bench -p data-cifar --bench batches -- CCT
"""

import os
import statistics
import sys
import time
import warnings

import numpy as np
import PIL
import PIL.ImageOps
import timm
import timm.data.auto_augment as auto_augment
import torch
import torchvision
from PIL import Image
from timm.data import Mixup, create_transform

BATCH = 128
POSTERIZE = PIL.ImageOps.posterize


def posterize(image, bits):
    """Pillow 13 refuses the 0 bits timm asks for at full strength; earlier ones answered with black."""
    return Image.new(image.mode, image.size) if bits < 1 else POSTERIZE(image, bits)


class Cifar(torch.utils.data.Dataset):
    def __init__(self, file, transform):
        records = np.fromfile(file, dtype=np.uint8).reshape(-1, 3073)
        self.labels = records[:, 0].astype(int)
        self.images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy()
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def main():
    directory = sys.argv[1]
    repetitions = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    warnings.filterwarnings("ignore", message=".*worker processes.*")
    auto_augment.ImageOps.posterize = posterize
    transform = create_transform(
        32, is_training=True, scale=(0.8, 1.0), hflip=0.5, interpolation="random",
        auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.0,
        mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
    )
    data = Cifar(os.path.join(directory, "data_batch_1.bin"), transform)
    mix = Mixup(
        mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch",
        label_smoothing=0.1, num_classes=10,
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"Pillow {PIL.__version__}, timm {timm.__version__}, torchvision {torchvision.__version__}, "
          f"torch {torch.__version__}, {cores} cores")
    best = 0.0
    for workers in range(cores + 2):
        if workers:
            torch.set_num_threads(1)  # the cores are the workers'
        loader = torch.utils.data.DataLoader(
            data, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers,
            persistent_workers=workers > 0,
        )
        rates = []
        for repetition in range(repetitions + 1):
            start, images = time.perf_counter(), 0
            for x, y in loader:
                x, y = mix(x, y)
                images += len(x)
            if repetition:  # the first starts the workers
                rates.append(images / (time.perf_counter() - start))
        median = statistics.median(rates)
        best = max(best, median)
        print(f"{workers} workers: {median:,.0f} images/s", flush=True)
    print(f"best: {best:,.0f} images/s")


if __name__ == "__main__":
    main()
