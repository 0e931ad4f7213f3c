"""What `trainer export` writes, in ONNX Runtime, PyTorch and timm, against the trainer's own logits.

    cargo build --release -p trainer
    pip install torch==2.11.0 timm==1.0.31 onnx==1.23.2 onnxruntime==1.32.0 numpy pillow safetensors
    python docs/parity/export_parity.py [PATTERN ...]

For every network that matches a pattern (by default the five that the presets train, and one of each that timm has), with every
tensor filled with random numbers: the logits of 64 pictures (of 4 for networks of more than 30 million parameters) from
`trainer forward`, and from what `trainer export` made. The ONNX file is checked by onnx.checker; batches of 1, 3 and all
pictures go through it and through the TorchScript file, which were made from passes over 2 and 3. Normalisation inside
is checked on weights that say how pictures are normalised. The largest difference between two logits may be 1e-4 for ONNX
and 1e-5 for TorchScript and timm, times the largest logit if that is larger than 1; 2e-2 of the largest logit for ONNX in f16.

Where there is a network of PyTorch's (timm's, or one of peers/networks.py, with the same tensors loaded strictly), ONNX Runtime is
compared with that too: from PyTorch's weights to ONNX Runtime's logits. Last, the lines of a model card are run as they stand in a
directory that `export --format hub` wrote, on pictures, and their answers compared with `trainer predict`.
"""

import fnmatch
import json
import subprocess
import sys
import tempfile
from pathlib import Path

# What PyTorch imports is Python's, whatever programs lie beside this one.
sys.path[0] = str(Path(__file__).resolve().parent / "peers")

import numpy as np
import onnx
import onnxruntime
import timm
import timm.data
import torch
from networks import NETWORKS as PEERS
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
TRAINER = ROOT / "target/release/trainer"
DEFAULT = ["cct_reference", "vit_reference", "convmixer_reference", "patchconvnet_reference", "gcvit_xxtiny_64",
           "vit_tiny_patch16_224", "convmixer_1024_20_ks9_p14", "gcvit_xxtiny"]
KEY = "compact-vision"
MEAN, STD = [120.0, 110.0, 100.0], [60.0, 50.0, 70.0]


def trainer(*words):
    done = subprocess.run([TRAINER, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"trainer {' '.join(map(str, words))}\n{done.stderr}")
    return done.stdout


def fill(path, generator):
    """Random numbers in every tensor: zero biases and factors of 1e-6 would hide what they belong to."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(noise.abs() * 0.2 + 0.8)
        elif tensor.numel() == max(tensor.shape) and not name.endswith((".bias", "running_mean")):
            tensor.copy_(noise * 0.2 + 0.7)
        elif tensor.dim() < 2:
            tensor.copy_(noise * 0.2)
        elif not name.endswith(".weight"):
            tensor.copy_(noise * 0.5)
    save_file(tensors, path, metadata)
    return metadata


def trained(path, metadata, run):
    """The same weights with the card of a run, as if it had normalised by MEAN and STD."""
    # "best" or "last": what the recipe keeps.
    with safe_open(next(run.glob("*.safetensors")), "pt") as file:
        card = json.loads(file.metadata()[KEY])
    card |= json.loads(metadata[KEY]) | {"channel_mean": MEAN, "channel_std": STD}
    other = path.with_name("trained.safetensors")
    save_file(load_file(path), other, metadata | {KEY: json.dumps(card)})
    return other


class Report:
    def __init__(self):
        self.failed = False

    def line(self, model, what, ours, theirs, bound):
        theirs = np.asarray(theirs)
        largest = float(np.abs(ours).max())
        difference = float(np.abs(ours - theirs).max())
        good = ours.shape == theirs.shape and difference <= bound * max(1.0, largest)
        self.failed |= not good
        print(f"{model:32} {what:24} {difference:.1e} of {largest:.2f} {'' if good else 'TOO MUCH'}", flush=True)


def batches(run, images):
    """All pictures at once, and again by one and by three."""
    whole = run(images)
    for size in (1, 3):
        part = run(images[:size])
        assert part.shape == (size, whole.shape[1]), part.shape
        assert np.abs(part - whole[:size]).max() <= 1e-4 * max(1.0, np.abs(whole).max()), size
    return whole


def onnx_logits(path):
    onnx.checker.check_model(str(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0]


def script_logits(path):
    module = torch.jit.load(str(path))
    assert not module.training

    def run(images):
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()

    return run, module


def check(model, about, folder, run, report):
    generator = torch.Generator().manual_seed(sum(map(ord, model)))
    weights = folder / "weights.safetensors"
    trainer("init", model, "--output", weights)
    metadata = fill(weights, generator)
    side = about["image_size"]
    count = 64 if about["params"] <= 30_000_000 else 4
    pixels = torch.rand(count, 3, side, side, generator=generator)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) / 255 for values in (MEAN, STD))
    images = ((pixels - mean) / std).contiguous()
    save_file({"input": images}, folder / "input.safetensors")
    trainer("forward", model, "--weights", weights, "--input", folder / "input.safetensors",
            "--output", folder / "output.safetensors")
    ours = load_file(folder / "output.safetensors")["logits"].numpy()
    images, pixels = images.numpy(), pixels.numpy()

    path = folder / "network.onnx"
    trainer("export", weights, "--format", "onnx", "--out", path)
    of_onnx = batches(onnx_logits(path), images)
    report.line(model, "onnx", ours, of_onnx, 1e-4)
    if model in PEERS and PEERS[model][1] == side and model != "gcvit_xxtiny":
        peer = PEERS[model][0](True).eval()
        peer.load_state_dict(load_file(weights), strict=True)
        with torch.no_grad():
            report.line(model, "PyTorch, onnx", peer(torch.from_numpy(images)).numpy(), of_onnx, 1e-4)
    names = {tensor.name for tensor in onnx.load(str(path), load_external_data=False).graph.initializer}
    lost = set(load_file(weights)) - names
    assert not lost, f"no initialiser is called {sorted(lost)[:5]}"
    trainer("export", weights, "--format", "onnx", "--precision", "f16", "--out", path)
    report.line(model, "onnx f16", ours, onnx_logits(path)(images), 2e-2)

    path = folder / "network.pt"
    trainer("export", weights, "--format", "torchscript", "--out", path)
    script, module = script_logits(path)
    report.line(model, "torchscript", ours, batches(script, images), 1e-5)
    state = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith("constants.")}
    tensors = load_file(weights)
    assert state.keys() == tensors.keys(), state.keys() ^ tensors.keys()
    assert all(torch.equal(state[name], tensors[name]) for name in tensors)

    with_card = trained(weights, metadata, run)
    path = folder / "inside.onnx"
    trainer("export", with_card, "--format", "onnx", "--normalize-inside", "--out", path)
    report.line(model, "onnx, pixels", ours, onnx_logits(path)(pixels), 1e-4)
    path = folder / "inside.pt"
    trainer("export", with_card, "--format", "torchscript", "--normalize-inside", "--out", path)
    report.line(model, "torchscript, pixels", ours, script_logits(path)[0](pixels), 1e-5)

    command = [TRAINER, "export", with_card, "--format", "timm", "--out", folder / "timm"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{model:32} timm                     {done.stderr.strip().split(': ', 2)[-1]}", flush=True)
        return
    network = timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True).eval()
    with torch.no_grad():
        theirs = network(torch.from_numpy(images)).numpy()
    report.line(model, "timm", ours, theirs, 1e-5)
    report.line(model, "PyTorch, onnx", theirs, of_onnx, 1e-4)
    data = timm.data.resolve_data_config({}, model=network)
    assert tuple(data["input_size"]) == (3, side, side), data
    assert np.allclose(np.array(data["mean"]) * 255, MEAN) and np.allclose(np.array(data["std"]) * 255, STD), data


def main():
    torch.set_num_threads(1)
    patterns = sys.argv[1:] or DEFAULT
    listed = json.loads(trainer("list", "--json"))
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        small = ["--set", "train.epochs=1", "--set", "model.embed_dim=16", "--set", "model.depth=1"]
        trainer("train", "--model", "vit_reference", "--preset", "quick", "--device", "cpu", *small, "--out", run)
        check_all(listed, patterns, run, report)
        check_card(Path(folder), report)
    raise SystemExit(report.failed)


def check_card(folder, report):
    """The lines of a card on digits that the network has not seen, against `predict`."""
    run, hub = folder / "trained", folder / "hub"
    trainer("train", "--model", "convmixer_reference", "--preset", "quick", "--device", "cpu", "--out", run)
    trainer("export", run, "--format", "hub", "--out", hub)
    lines = (hub / "README.md").read_text().split("```python\n")[1].split("```")[0]
    digits = np.loadtxt(ROOT / "datasets/digits/digits.csv", delimiter=",", dtype=int)
    for row in digits[10 : 10 + 11 * 10 : 11]:
        blocks = np.round(row[:64].reshape(8, 8) * 255 / 16).astype(np.uint8)
        Image.fromarray(blocks.repeat(4, 0).repeat(4, 1)).save(hub / "picture.png")
        done = subprocess.run([sys.executable, "-c", lines], cwd=hub, capture_output=True, text=True)
        said = done.stdout.strip() or done.stderr
        answer = json.loads(trainer("predict", "--weights", run, hub / "picture.png", "--format", "json"))
        wanted = answer["top"][0]["class"]
        report.failed |= said != wanted
        print(f"{'convmixer_reference':32} {'lines of the card':24} {said}, predict {wanted}, a {row[64]}", flush=True)


def check_all(listed, patterns, run, report):
    for about in listed:
        model = about["model"]
        if any(fnmatch.fnmatch(model, pattern) for pattern in patterns):
            with tempfile.TemporaryDirectory() as folder:
                check(model, about, Path(folder), run, report)


main()
