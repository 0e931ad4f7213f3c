"""Writes what timm's Muon makes of five tensors in five updates, for the trainer's tests.

Its iteration runs in f32 here, where timm's own runs in bf16: the first three digits would be all there is to compare.
With Nesterov's step timm takes NAdamW for what is no matrix, so that case has matrices alone.

Versions used: torch 2.11.0, timm 1.0.31.
    pip install timm torch==2.11.0
    python docs/parity/muon.py > crates/trainer/tests/golden/muon.json
"""

import functools
import json

import timm
import torch
from timm.optim import muon

muon.zeropower_via_newtonschulz = functools.partial(muon.zeropower_via_newtonschulz, dtype=torch.float32)

STEPS, WEIGHT_DECAY = 5, 0.05
SHAPES = {"bias": [3], "depthwise": [4, 1, 3, 3], "kernel": [6, 2, 2, 2], "tall": [9, 4], "wide": [4, 6]}
MATRICES = ["kernel", "tall", "wide"]

generator = torch.Generator().manual_seed(1)
# Three decimals: the file and both programs have the same f32 numbers.
draw = lambda shape: (torch.randn(shape, generator=generator) * 1000).round() / 1000
flat = lambda tensor, decimals: [round(value, decimals) for value in tensor.flatten().tolist()]
start = {name: draw(shape) for name, shape in SHAPES.items()}
gradients = [{name: draw(shape) for name, shape in SHAPES.items()} for _ in range(STEPS)]
rates = [round(0.01 * (1 + step % 4) / (1 + step / 5), 6) for step in range(STEPS)]


def updates(names, nesterov):
    params = {name: torch.nn.Parameter(start[name].clone()) for name in names}
    stepper = muon.Muon(params.values(), lr=1.0, weight_decay=WEIGHT_DECAY, nesterov=nesterov)
    for rate, gradient in zip(rates, gradients):
        stepper.param_groups[0]["lr"] = rate
        for name, param in params.items():
            param.grad = gradient[name].clone()
        stepper.step()
        yield [value for param in params.values() for value in flat(param.detach(), 8)]


golden = dict(
    versions=dict(torch=torch.__version__, timm=timm.__version__),
    weight_decay=WEIGHT_DECAY,
    rates=rates,
    shapes=SHAPES,
    start={name: flat(value, 3) for name, value in start.items()},
    gradients=[{name: flat(value, 3) for name, value in step.items()} for step in gradients],
    cases=[
        dict(names=list(SHAPES), nesterov=False, after=list(updates(SHAPES, False))),
        dict(names=MATRICES, nesterov=True, after=list(updates(MATRICES, True))),
    ],
)
text = json.dumps(golden, separators=(",", ":"))
print(text.replace("],[", "],\n[").replace('},"', '},\n"').replace('},{', '},\n{'))
