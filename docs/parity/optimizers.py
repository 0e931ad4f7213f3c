"""Writes what PyTorch's and timm's optimisers make of three tensors in ten updates, and timm's groups of a ViT's tensors,
for the trainer's tests.

The gradients and the learning rate differ from update to update. Each case has one group, or two, where only the matrix
and the kernel have weight decay.

Versions used: torch 2.11.0, timm 1.0.31.
    pip install timm torch==2.11.0
    python docs/parity/optimizers.py > crates/trainer/tests/golden/optimizers.json
"""

import json

import timm
import torch
from timm.optim import Lamb, Lion, param_groups_layer_decay, param_groups_weight_decay

STEPS, WEIGHT_DECAY, LAYER_DECAY = 10, 0.05, 0.75
SHAPES = {"bias": [3], "kernel": [2, 1, 2, 1], "matrix": [2, 3]}

generator = torch.Generator().manual_seed(1)
# Three decimals: the file and both programs have the same f32 numbers.
draw = lambda shape: (torch.randn(shape, generator=generator) * 1000).round() / 1000
flat = lambda tensor, decimals=8: [round(value, decimals) for value in tensor.flatten().tolist()]
start = {name: draw(shape) for name, shape in SHAPES.items()}
gradients = [{name: draw(shape) for name, shape in SHAPES.items()} for _ in range(STEPS)]
rates = [round(0.01 * (1 + step % 4) / (1 + step / 5), 6) for step in range(STEPS)]

# Loops over tensors, no fused kernels: those are what is to be compared.
PLAIN = dict(foreach=False, fused=False)
ADAMW = dict(PLAIN, betas=(0.9, 0.999), eps=1e-8)
LAMB = dict(foreach=False, betas=(0.9, 0.999), eps=1e-6, max_grad_norm=None)
LION = dict(foreach=False, betas=(0.9, 0.99))
CASES = {
    # name: (optimiser, its constants, norm to clip to, whether the bias has a group without decay)
    "adamw": (torch.optim.AdamW, ADAMW, None, False),
    "adamw, other betas and eps": (torch.optim.AdamW, dict(PLAIN, betas=(0.8, 0.95), eps=1e-3), None, False),
    "adamw, clipped": (torch.optim.AdamW, ADAMW, 1.0, False),
    "adamw, two groups": (torch.optim.AdamW, ADAMW, None, True),
    "sgd": (torch.optim.SGD, dict(PLAIN), None, False),
    "sgd, momentum": (torch.optim.SGD, dict(PLAIN, momentum=0.9), None, False),
    "sgd, nesterov": (torch.optim.SGD, dict(PLAIN, momentum=0.9, nesterov=True), None, False),
    "sgd, nesterov, clipped, two groups": (torch.optim.SGD, dict(PLAIN, momentum=0.9, nesterov=True), 1.0, True),
    "lamb": (Lamb, LAMB, None, False),
    "lamb, clipped, two groups": (Lamb, LAMB, 1.0, True),
    "lion": (Lion, LION, None, False),
    "lion, clipped, two groups": (Lion, LION, 1.0, True),
}


def updates(optimizer, constants, clip, two_groups):
    params = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    bias, weights = [params["bias"]], [params["kernel"], params["matrix"]]
    groups = [dict(params=weights, weight_decay=WEIGHT_DECAY), dict(params=bias, weight_decay=0.0)]
    stepper = optimizer(groups if two_groups else params.values(), lr=1.0, weight_decay=WEIGHT_DECAY, **constants)
    for rate, gradient in zip(rates, gradients):
        for group in stepper.param_groups:
            group["lr"] = rate
        for name, param in params.items():
            param.grad = gradient[name].clone()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(params.values(), clip)
        stepper.step()
        yield [value for param in params.values() for value in flat(param.detach())]


def vit_groups():
    model = timm.create_model("vit_tiny_patch16_224")
    names = {id(param): name for name, param in model.named_parameters()}
    exempt = model.no_weight_decay()
    by_layer = param_groups_layer_decay(model, WEIGHT_DECAY, exempt, layer_decay=LAYER_DECAY)
    plain = param_groups_weight_decay(model, WEIGHT_DECAY, no_weight_decay_list=exempt)
    decays = {names[id(p)]: group["weight_decay"] for group in plain for p in group["params"]}
    # Both functions agree on what decays.
    for group in by_layer:
        for param in group["params"]:
            assert decays[names[id(param)]] == group["weight_decay"]
    return [
        dict(lr_scale=group["lr_scale"], weight_decay=group["weight_decay"], names=[names[id(p)] for p in group["params"]])
        for group in by_layer
    ]


cases = {
    name: dict(clip=clip, two_groups=two_groups, after=list(updates(optimizer, constants, clip, two_groups)))
    for name, (optimizer, constants, clip, two_groups) in CASES.items()
}
golden = dict(
    versions=dict(torch=torch.__version__, timm=timm.__version__),
    weight_decay=WEIGHT_DECAY,
    rates=rates,
    shapes=SHAPES,
    start={name: flat(value, 3) for name, value in start.items()},
    gradients=[{name: flat(value, 3) for name, value in step.items()} for step in gradients],
    cases=cases,
    vit_tiny_patch16_224=dict(layer_decay=LAYER_DECAY, groups=vit_groups()),
)
# A line for each entry of the outer lists and dictionaries, where a difference can be seen.
text = json.dumps(golden, separators=(",", ":"))
print(text.replace("],[", "],\n[").replace('},"', '},\n"').replace('},{', '},\n{'))
