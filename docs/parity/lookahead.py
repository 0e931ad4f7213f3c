"""Writes what timm's Lookahead makes of three tensors in eleven updates, for the trainer's tests.

Versions used: torch 2.11.0, timm 1.0.31.
    pip install timm torch==2.11.0
    python docs/parity/lookahead.py > crates/trainer/tests/golden/lookahead.json
"""

import json

import timm
import torch
from timm.optim.lookahead import Lookahead

STEPS, WEIGHT_DECAY = 11, 0.05
SHAPES = {"bias": [3], "kernel": [4, 2, 2, 2], "weight": [3, 5]}

generator = torch.Generator().manual_seed(2)
# Three decimals: the file and both programs have the same f32 numbers.
draw = lambda shape: (torch.randn(shape, generator=generator) * 1000).round() / 1000
flat = lambda tensor, decimals: [round(value, decimals) for value in tensor.flatten().tolist()]
start = {name: draw(shape) for name, shape in SHAPES.items()}
gradients = [{name: draw(shape) for name, shape in SHAPES.items()} for _ in range(STEPS)]
rates = [round(0.02 * (1 + step % 4) / (1 + step / 5), 6) for step in range(STEPS)]


def updates(base, k, alpha):
    params = {name: torch.nn.Parameter(start[name].clone()) for name in SHAPES}
    stepper = Lookahead(base(params.values()), k=k, alpha=alpha)
    for rate, gradient in zip(rates, gradients):
        stepper.param_groups[0]["lr"] = rate
        for name, param in params.items():
            param.grad = gradient[name].clone()
        stepper.step()
        yield [value for param in params.values() for value in flat(param.detach(), 8)]


adamw = lambda params: torch.optim.AdamW(params, lr=1.0, weight_decay=WEIGHT_DECAY)
sgd = lambda params: torch.optim.SGD(params, lr=1.0, weight_decay=WEIGHT_DECAY, momentum=0.9, nesterov=True)
golden = dict(
    versions=dict(torch=torch.__version__, timm=timm.__version__),
    weight_decay=WEIGHT_DECAY,
    rates=rates,
    shapes=SHAPES,
    start={name: flat(value, 3) for name, value in start.items()},
    gradients=[{name: flat(value, 3) for name, value in step.items()} for step in gradients],
    cases=[
        dict(name=name, k=k, alpha=alpha, after=list(updates(base, k, alpha)))
        for name, base in (("adamw", adamw), ("sgd", sgd))
        for k, alpha in ((3, 0.5), (5, 0.8))
    ],
)
text = json.dumps(golden, separators=(",", ":"))
print(text.replace("],[", "],\n[").replace('},"', '},\n"').replace('},{', '},\n{'))
