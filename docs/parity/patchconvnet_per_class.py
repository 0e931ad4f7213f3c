"""Prints the logits of a small PatchConvNet with one class token per class, for the crate's tests.

No vector was ever published for this variant, so the network is written out here a second time, on PyTorch's
functions and apart from the crate, as the official implementation (facebookresearch/deit) describes it.
Tensors are filled by name as core_layers::parity does.

Versions used: torch 2.11.0, numpy 2.4.6.
    python docs/parity/patchconvnet_per_class.py
"""

import numpy as np
import torch
import torch.nn.functional as F

DIM, DEPTH, CLASSES, SIDE = 64, 3, 6, 48


def uniform(name, count):
    hashed = 0x811C9DC5
    for byte in name.encode():
        hashed = ((hashed ^ byte) * 0x01000193) & 0xFFFFFFFF
    with np.errstate(over="ignore"):
        z = np.arange(count, dtype=np.uint64) + np.uint64((hashed << 32) + 0x9E3779B97F4A7C15 & (1 << 64) - 1)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return ((z ^ z >> np.uint64(31)) >> np.uint64(40)).astype(np.float64) / 2**24


def tensor(name, *shape, kind="weight"):
    r = 2 * uniform(name, int(np.prod(shape))) - 1
    fan_in = int(np.prod(shape[1:])) if shape[1:] else 1
    ranges = {
        "weight": np.sqrt(3 / fan_in) * r,
        "gain": 1 + 0.1 * r,
        "shift": 0.1 * r,
        "token": 0.5 * r,
        "scale": 0.5 + 0.1 * r,
    }
    return torch.tensor(ranges[kind].astype(np.float32)).reshape(shape)


def norm(x, name):
    gain, shift = tensor(f"{name}.weight", DIM, kind="gain"), tensor(f"{name}.bias", DIM, kind="shift")
    return F.layer_norm(x, (DIM,), gain, shift, 1e-6)


def linear(x, name, inputs, outputs):
    return F.linear(x, tensor(f"{name}.weight", outputs, inputs), tensor(f"{name}.bias", outputs, kind="shift"))


def conv(x, name, inputs, outputs, kernel=1, groups=1):
    weight = tensor(f"{name}.weight", outputs, inputs // groups, kernel, kernel)
    return F.conv2d(x, weight, tensor(f"{name}.bias", outputs, kind="shift"), padding=kernel // 2, groups=groups)


def trunk_block(x, block):
    side = int(x.shape[1] ** 0.5)
    y = norm(x, f"{block}.norm1").transpose(1, 2).reshape(-1, DIM, side, side)
    layers = f"{block}.attn.qkv_pos"
    y = F.gelu(conv(y, f"{layers}.0", DIM, DIM))
    y = F.gelu(conv(y, f"{layers}.2", DIM, DIM, 3, DIM))
    pooled = y.mean((2, 3), keepdim=True)
    excited = conv(F.relu(conv(pooled, f"{layers}.4.conv_reduce", DIM, DIM // 4)), f"{layers}.4.conv_expand", DIM // 4, DIM)
    y = conv(y * excited.sigmoid(), f"{layers}.5", DIM, DIM)
    return x + tensor(f"{block}.gamma_1", DIM, kind="scale") * y.flatten(2).transpose(1, 2)


def logits(images):
    x, inputs = images, 3
    for layer, outputs in zip((0, 2, 4, 6), (DIM // 8, DIM // 4, DIM // 2, DIM)):
        x = F.gelu(x) if layer else x
        x = F.conv2d(x, tensor(f"patch_embed.proj.{layer}.0.weight", outputs, inputs, 3, 3), stride=2, padding=1)
        inputs = outputs
    x = x.flatten(2).transpose(1, 2)
    for i in range(DEPTH):
        x = trunk_block(x, f"blocks.{i}")
    tokens = tensor("cls_token", 1, CLASSES, DIM, kind="token").expand(len(x), -1, -1)
    block = "blocks_token_only.0"
    seen = norm(torch.cat([tokens, x], 1), f"{block}.norm1")
    q = linear(seen[:, :CLASSES], f"{block}.attn.q", DIM, DIM)
    k = linear(seen[:, CLASSES:], f"{block}.attn.k", DIM, DIM)
    v = linear(seen[:, CLASSES:], f"{block}.attn.v", DIM, DIM)
    gathered = (q @ k.transpose(1, 2) * DIM**-0.5).softmax(-1) @ v
    tokens = tokens + tensor(f"{block}.gamma_1", DIM, kind="scale") * linear(gathered, f"{block}.attn.proj", DIM, DIM)
    hidden = F.gelu(linear(norm(tokens, f"{block}.norm2"), f"{block}.mlp.fc1", DIM, 3 * DIM))
    tokens = tokens + tensor(f"{block}.gamma_2", DIM, kind="scale") * linear(hidden, f"{block}.mlp.fc2", 3 * DIM, DIM)
    tokens = norm(tokens, "norm")
    return torch.cat([linear(tokens[:, c], f"head.{c}", DIM, 1) for c in range(CLASSES)], 1)


images = np.floor(256 * uniform("image", 2 * 3 * SIDE * SIDE)).reshape(2, 3, SIDE, SIDE) / 255
for row in logits(torch.tensor(images.astype(np.float32))):
    print(" ".join(f"{value:.6f}" for value in row))
