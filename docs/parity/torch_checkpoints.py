"""Writes the PyTorch checkpoints that tests read: small ones of every form for `core-layers`, and two of timm's networks with
their logits for `trainer`.

Versions used: torch 2.11.0, timm 1.0.31.
    pip install torch==2.11.0 timm==1.0.31
    python docs/parity/torch_checkpoints.py
"""

import argparse
import pathlib
from collections import OrderedDict

import timm
import torch
from timm.models.convmixer import ConvMixer
from timm.models.vision_transformer import VisionTransformer

CRATES = pathlib.Path(__file__).parents[2] / "crates"
FORMS = CRATES / "core-layers" / "tests" / "golden"
NETWORKS = CRATES / "trainer" / "tests" / "golden"


def forms():
    base = torch.arange(12, dtype=torch.float32).view(3, 4) / 4 - 1
    plain = OrderedDict(
        base=base,
        transposed=base.t(),
        column=base[:, 1],
        block=base[1:, 1:3],
        every_second=base.flatten()[1::2],
        parameter=torch.nn.Parameter(torch.tensor([0.5, -0.25])),
        half=torch.tensor([1.5, -2.25, 65504.0], dtype=torch.float16),
        bfloat=torch.tensor([1.5, -2.25, 2.0**100], dtype=torch.bfloat16),
        double=torch.tensor([0.1, -1e-300], dtype=torch.float64),
        scalar=torch.tensor(7.0),
        empty=torch.zeros(0, 3),
        counter=torch.tensor(3),
    )
    torch.save(plain, FORMS / "plain.pt")
    torch.save(plain, FORMS / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(plain, FORMS / "protocol4.pt", pickle_protocol=4)

    network = torch.nn.Linear(2, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        network.bias.copy_(torch.tensor([5.0, 6.0]))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    averaged = OrderedDict((f"module.{name}", 10 * tensor.detach()) for name, tensor in network.state_dict().items())
    state = {"epoch": 3, "arch": "linear", "metric": 0.5, "state_dict": network.state_dict()}
    torch.save(state | {"state_dict_ema": averaged, "optimizer": optimizer.state_dict()}, FORMS / "training.pt")
    torch.save(state | {"args": argparse.Namespace(lr=0.1)}, FORMS / "namespace.pt")
    compiled = {"model": {f"_orig_mod.{name}": tensor for name, tensor in network.state_dict().items()}}
    torch.save(compiled, FORMS / "compiled.pt")


@torch.no_grad()
def network(name, model, side, wrap):
    model.eval()
    state = model.state_dict()
    for place, (key, tensor) in enumerate(sorted(state.items())):
        if not tensor.is_floating_point():
            continue
        wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 0.7 + place).view(tensor.shape).float()
        around = 1.0 if tensor.ndim == 1 and key.rsplit(".", 1)[-1] in ("weight", "running_var") else 0.0
        tensor.copy_(around + 0.3 * wave)
    images = torch.sin(torch.arange(2 * 3 * side * side, dtype=torch.float64) * 0.1).view(2, 3, side, side).float()
    logits = model(images)
    torch.save(wrap(state), NETWORKS / f"{name}.pt")
    print(f"{name}: {[[round(value, 6) for value in row] for row in logits.tolist()]}")


if __name__ == "__main__":
    print(f"torch {torch.__version__}, timm {timm.__version__}")
    forms()
    mixer = ConvMixer(dim=8, depth=1, kernel_size=5, patch_size=2, num_classes=3)
    network("timm_convmixer", mixer, 8, lambda state: {"epoch": 1, "state_dict": state})
    transformer = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, mlp_ratio=2, num_classes=3
    )
    network("timm_vit", transformer, 8, lambda state: OrderedDict((f"module.{k}", v) for k, v in state.items()))
