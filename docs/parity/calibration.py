"""Calibration error and temperature of 40 answers whose logits are drawn from names, for run-record's tests.

The error is torchmetrics' (15 bins, mean distance); the temperature is fitted as by Guo et al. (arXiv:1706.04599): the
negative log-likelihood is minimised with PyTorch's L-BFGS.

Versions used: torchmetrics 1.9.0, torch 2.11.0.
    pip install torchmetrics torch==2.11.0
    python docs/parity/calibration.py
"""

import torch
from torchmetrics.functional.classification import multiclass_calibration_error

# A linear congruential generator that any language has room for.
state = 12345
logits, labels = [], []
for _ in range(40):
    row = []
    for _ in range(3):
        state = (1103515245 * state + 12345) % 2**31
        row.append(8 * (state / 2**31) - 4)
    state = (1103515245 * state + 12345) % 2**31
    best = max(range(3), key=row.__getitem__)
    # Two of three answers are right, about.
    labels.append(best if state % 30 < 20 else (best + 1) % 3)
    logits.append(row)
logits = torch.tensor(logits, dtype=torch.float64)
labels = torch.tensor(labels)


def error(temperature):
    shares = (logits / temperature).softmax(1)
    return multiclass_calibration_error(shares, labels, num_classes=3, n_bins=15, norm="l1").item()


inverse = torch.ones((), dtype=torch.float64, requires_grad=True)
optimizer = torch.optim.LBFGS([inverse], lr=0.5, max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14)


def closure():
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(logits * inverse, labels)
    loss.backward()
    return loss


optimizer.step(closure)
temperature = 1 / inverse.item()
print("right", (logits.argmax(1) == labels).double().mean().item())
print("error before", error(1.0), "temperature", temperature, "error after", error(temperature))
