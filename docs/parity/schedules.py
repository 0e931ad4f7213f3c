"""Prints learning rates of timm's and PyTorch's own schedules, for the tests of trainer's schedules.

Each line is a step (or an epoch) and the rate of the update made there.

Versions used: timm 1.0.31, torch 2.11.0, numpy 2.4.6.
    pip install timm torch==2.11.0 numpy
    python docs/parity/schedules.py
"""

import math

import numpy as np
import timm
import torch
from timm.scheduler import CosineLRScheduler
from torch.optim.lr_scheduler import OneCycleLR


def optimizer(lr):
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def show(name, rates):
    print(name)
    for step, rate in rates:
        print(f"    ({step}, {rate!r}),")


def timm_cosine(lr, t_initial, lr_min, warmup_t, warmup_lr_init, steps, t_in_epochs):
    opt = optimizer(lr)
    scheduler = CosineLRScheduler(
        opt, t_initial, lr_min=lr_min, warmup_t=warmup_t, warmup_lr_init=warmup_lr_init, t_in_epochs=t_in_epochs
    )
    first = opt.param_groups[0]["lr"]  # what an epoch or an update uses before any call
    for step in steps:
        scheduler.step(step) if t_in_epochs else scheduler.step_update(step)
        rate = opt.param_groups[0]["lr"]
        assert step > 0 or rate == first
        yield step, rate


def one_cycle(steps, **arguments):
    opt = optimizer(1.0)
    scheduler = OneCycleLR(opt, **arguments)
    for step in range(arguments["total_steps"]):
        if step in steps:
            yield step, float(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()


print(f"timm {timm.__version__}, torch {torch.__version__}, numpy {np.__version__}")
show(
    "timm cosine, CCT-7/3x1 on CIFAR-10 per epoch: lr 5.5e-4, 300 epochs, minimum 1e-5, 10 of warm-up from 1e-5",
    timm_cosine(5.5e-4, 300, 1e-5, 10, 1e-5, [0, 1, 9, 10, 11, 150, 299, 300, 309], True),
)
show(
    "timm cosine, GCViT per update: lr 5e-3, 310 epochs of 1,251, minimum 5e-6, 20 of warm-up from 1e-6",
    timm_cosine(
        5e-3, 310 * 1251, 5e-6, 20 * 1251, 1e-6, [0, 1, 25_019, 25_020, 200_000, 387_809, 387_810, 400_000], False
    ),
)
show(
    "timm cosine without warm-up: lr 1, 4 epochs, minimum 0",
    timm_cosine(1.0, 4, 0.0, 0, 0.0, range(6), True),
)
show("one cycle, 100 steps to 0.01, cosine", one_cycle([0, 1, 28, 29, 30, 60, 98, 99], max_lr=0.01, total_steps=100))
show(
    "one cycle, 50 steps to 0.1, linear, 0.25 of rise from a tenth to a hundredth of that",
    one_cycle(
        [0, 5, 11, 12, 13, 30, 49],
        max_lr=0.1,
        total_steps=50,
        pct_start=0.25,
        div_factor=10.0,
        final_div_factor=100.0,
        anneal_strategy="linear",
    ),
)
show(
    "one cycle, 10 steps to 0.1, cosine, without a rise",
    one_cycle([0, 1, 5, 9], max_lr=0.1, total_steps=10, pct_start=0.0),
)
times = [0.0, 1 / 98, 5.5, 10.0, 15.25, 20.0, 22.5, 25.0, 26.0]
rates = np.interp(times, [0, 10, 20, 25], [0, 0.05, 0.0025, 0])
show("piecewise linear, ConvMixer on CIFAR-10 for 25 epochs", zip(times, rates.tolist()))
# The published script's own formula: github.com/SHI-Labs/Compact-Transformers, examples/main.py.
harmonic = lambda e: 5e-4 / (10 - e) if e < 10 else 5e-4 * 0.5 * (1 + math.cos(math.pi * (e - 10) / (200 - 10)))
show("harmonic warm-up and cosine, 200 epochs, 10 of warm-up", [(e, harmonic(e)) for e in [0, 1, 8, 9, 10, 11, 105, 199]])
