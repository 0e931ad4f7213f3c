"""Checks that weights go from this project to timm and back without changing a logit.

For every model named on the command line (without names: one of each family timm has), in both
directions: the weights load strictly, and the logits of two images differ by less than 1e-4.

Versions used: timm 1.0.31, torch 2.11.0, safetensors 0.8.0.
    pip install timm torch==2.11.0 safetensors
    cargo build --release -p trainer
    python docs/parity/timm_parity.py [MODEL…]
"""

import pathlib
import re
import subprocess
import sys
import tempfile

import timm
import torch
from safetensors.torch import load_file, save_file

TRAINER = pathlib.Path(__file__).parents[2] / "target" / "release" / "trainer"
DEFAULT = ["gcvit_xxtiny", "vit_tiny_patch16_224", "convmixer_1024_20_ks9_p14"]

# NVIDIA's names of GCViT's tensors, which ours are, and timm's.
GCVIT = [
    (r"^patch_embed\.proj\.", "stem.conv1."),
    (r"^patch_embed\.conv_down\.", "stem.down."),
    (r"^levels\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (
        r"^levels\.(\d+)\.q_global_gen\.to_q_global\.(\d+)\.conv\.",
        lambda m: f"stages.{m[1]}.global_block.blocks.conv{int(m[2]) + 1}.",
    ),
    (r"^(stem\.down|stages\.\d+\.downsample)\.conv\.", r"\1.conv_block."),
    (r"(conv_block|blocks\.conv\d+)\.0\.", r"\1.conv_dw."),
    (r"(conv_block|blocks\.conv\d+)\.2\.fc\.0\.", r"\1.se.fc1."),
    (r"(conv_block|blocks\.conv\d+)\.2\.fc\.2\.", r"\1.se.fc2."),
    (r"(conv_block|blocks\.conv\d+)\.3\.", r"\1.conv_pw."),
    (r"^levels\.(\d+)\.blocks\.", r"stages.\1.blocks."),
    (r"attn\.relative_position_bias_table$", "attn.rel_pos.relative_position_bias_table"),
    (r"\.gamma([12])$", r".ls\1.gamma"),
    (r"^norm\.", "stages.3.norm."),
    (r"^head\.", "head.fc."),
]


def to_timm(model, weights):
    if not model.startswith("gcvit"):
        return weights
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in GCVIT:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor[:, :, None, None] if ".se.fc" in name else tensor
    return renamed


def trainer(*arguments):
    subprocess.run([TRAINER, *map(str, arguments)], check=True)


def forward(model, weights, images, folder, *options):
    save_file({"input": images}, folder / "input.safetensors")
    output = folder / "output.safetensors"
    files = ["--weights", weights, "--input", folder / "input.safetensors", "--output", output]
    trainer("forward", model, *files, *options)
    return load_file(output)["logits"]


@torch.no_grad()
def theirs(network, images):
    # One by one: timm's GCViT hands an image the queries of its neighbours.
    return torch.cat([network(image[None]) for image in images])


def report(what, ours, reference):
    difference = (ours - reference).abs().max().item()
    print(f"  {what}: logits up to {reference.abs().max():.3f}, largest difference {difference:.1e}")
    return difference < 1e-4


def check(model, folder):
    print(model)
    network = timm.create_model(model, pretrained=False, num_classes=1000).eval()
    images = torch.randn(2, *network.default_cfg["input_size"], generator=torch.Generator().manual_seed(0))
    weights = folder / "weights.safetensors"

    trainer("init", model, "--output", weights)
    network.load_state_dict(to_timm(model, load_file(weights)), strict=True)
    good = report("ours in timm", forward(model, weights, images, folder), theirs(network, images))

    # Gains, shifts and statistics too are to differ from what they start as.
    generator = torch.Generator().manual_seed(1)
    state = network.state_dict()
    for tensor in state.values():
        if tensor.is_floating_point():
            spread = 0.5 * tensor.std().item() if tensor.ndim > 1 else 0.05
            tensor += spread * torch.randn(tensor.shape, generator=generator)
            if (tensor < 0.5).any() and tensor.ndim == 1 and tensor.mean() > 0.9:
                tensor.clamp_(min=0.5)
    network.load_state_dict(state)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, weights)
    good &= report("timm's in ours", forward(model, weights, images, folder), theirs(network, images))

    if model == "vit_tiny_patch16_224":
        smaller = timm.create_model(model, pretrained=False, img_size=160).eval()
        resized = timm.models.vision_transformer.checkpoint_filter_fn(dict(state), smaller)
        smaller.load_state_dict(resized, strict=True)
        images = torch.nn.functional.interpolate(images, 160, mode="bilinear")
        logits = forward(model, weights, images, folder, "--image-size", 160)
        good &= report("timm's in ours, at 160×160", logits, theirs(smaller, images))
    return good


if __name__ == "__main__":
    print(f"timm {timm.__version__}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        results = [check(model, pathlib.Path(folder)) for model in sys.argv[1:] or DEFAULT]
    sys.exit(0 if all(results) else 1)
