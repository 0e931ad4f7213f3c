"""Prints what PyTorch's optimisers make of five parameters in ten steps, for torch-ext's tests.

Parameters and gradients are fractions that f32 holds exactly, the same as in crates/torch-ext/tests/optimizers.rs.

Versions used: torch 2.11.0.
    python docs/parity/optimizer_steps.py
"""

import torch

STEPS, COUNT = 10, 5

OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, dict(lr=1e-2, weight_decay=0.05)),
    "adamw, betas and eps": (torch.optim.AdamW, dict(lr=1e-2, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.0)),
    "sgd": (torch.optim.SGD, dict(lr=1e-2, weight_decay=0.05)),
    "sgd, momentum": (torch.optim.SGD, dict(lr=1e-2, momentum=0.9, weight_decay=0.05)),
    "sgd, nesterov": (torch.optim.SGD, dict(lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.05)),
}


def start():
    return torch.tensor([(i % 5 - 2) / 4 for i in range(COUNT)])


def gradient(step):
    return torch.tensor([((7 * i + 3 * step) % 11 - 4) / 8 for i in range(COUNT)])


for name, (optimizer, options) in OPTIMIZERS.items():
    # The loops over tensors, not the fused kernels that are to be compared with them.
    param = torch.nn.Parameter(start())
    stepper = optimizer([param], foreach=False, fused=False, **options)
    for step in range(STEPS):
        param.grad = gradient(step)
        stepper.step()
    print(f"{name}: [{', '.join(f'{value:.8f}' for value in param.tolist())}]")

grads = [gradient(0), gradient(1)]
params = [torch.nn.Parameter(torch.zeros(COUNT)) for _ in grads]
for param, grad in zip(params, grads):
    param.grad = grad.clone()
norm = torch.nn.utils.clip_grad_norm_(params, 0.5)
print(f"norm: {norm.item():.8f}")
for param in params:
    print(f"clipped to 0.5: [{', '.join(f'{value:.8f}' for value in param.grad.tolist())}]")
