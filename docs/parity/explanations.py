"""Grad-CAM and attention rollout of small networks filled from their tensors' names, for the tests of vit and convmixer.

Grad-CAM is that of the package grad-cam (pytorch-grad-cam): its weights and sum, before it is enlarged, made 0 to 1 by
its own scaling. Rollout is Abnar & Zuidema's (arXiv:2005.00928, eq. 1), from the attention that timm's blocks compute.

Versions used: grad-cam 1.5.7, timm 1.0.31, torch 2.11.0, numpy 2.4.6.
    pip install grad-cam timm torch==2.11.0
    python docs/parity/explanations.py
"""

import numpy as np
import timm
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from timm.models.convmixer import ConvMixer


def uniform(name, count):
    """The numbers of core_layers::parity: FNV-1a over the name, SplitMix64 over the index, 24 bits."""
    code = 0x811C9DC5
    for byte in name.encode():
        code = ((code ^ byte) * 0x01000193) & 0xFFFFFFFF
    z = (np.uint64(code) << np.uint64(32)) + np.arange(count, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / 2**24


def fill(model, is_norm):
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        r = 2 * uniform(name, tensor.numel()) - 1
        if name in ("cls_token", "pos_embed"):
            values = 0.5 * r
        elif name.endswith("running_var"):
            values = 1 + 0.5 * (r + 1) / 2
        elif is_norm(name) and name.endswith("weight"):
            values = 1 + 0.1 * r
        elif name.endswith("weight"):
            values = np.sqrt(3 / np.prod(tensor.shape[1:])) * r
        else:
            values = 0.1 * r
        tensor.copy_(torch.from_numpy(values.astype(np.float32)).reshape(tensor.shape))
    return model.eval()


def images(size):
    values = np.floor(256 * uniform("image", 3 * size * size)).astype(np.float32)
    return torch.from_numpy(values).reshape(1, 3, size, size) / 255


def grad_cam(model, layer, image, target, reshape=None):
    cam = GradCAM(model=model, target_layers=[layer], reshape_transform=reshape)
    targets = [ClassifierOutputTarget(target)]
    outputs = cam.activations_and_grads(image)
    model.zero_grad()
    sum(target(output) for target, output in zip(targets, outputs)).backward(retain_graph=True)
    activations = cam.activations_and_grads.activations[0].numpy()
    gradients = cam.activations_and_grads.gradients[0].numpy()
    raw = cam.get_cam_image(image, layer, targets, activations, gradients, False)
    return scale_cam_image(np.maximum(raw, 0))[0]


def rollout(model, image):
    attention = []

    def keep(module, inputs, output):
        (x,) = inputs[:1]
        b, n, c = x.shape
        q, k, _ = module.qkv(x).reshape(b, n, 3, module.num_heads, c // module.num_heads).permute(2, 0, 3, 1, 4)
        attention.append((q @ k.transpose(-2, -1) * module.scale).softmax(-1)[0].mean(0).double().numpy())

    hooks = [block.attn.register_forward_hook(keep) for block in model.blocks]
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    rolled = np.eye(attention[0].shape[0])
    for layer in attention:
        layer = layer + np.eye(layer.shape[0])
        rolled = layer / layer.sum(-1, keepdims=True) @ rolled
    return rolled[0, 1:]


def show(title, values):
    print(title, "largest of all at", int(np.argmax(values)))
    print(", ".join(f"{value:.6f}" for value in np.asarray(values).flatten()))


def main():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10)
    with torch.no_grad():
        fill(vit, lambda name: "norm" in name)
    image = images(64)

    def reshape(tokens):
        return tokens[:, 1:].reshape(tokens.size(0), 4, 4, -1).permute(0, 3, 1, 2)

    for target in (1, 9):
        show(f"vit, Grad-CAM of class {target}:", grad_cam(vit, vit.blocks[-1].norm1, image, target, reshape))
    show("vit, rollout, times 16:", 16 * rollout(vit, image))

    convmixer = ConvMixer(dim=64, depth=3, kernel_size=7, patch_size=7, num_classes=10)
    names = {name for name, module in convmixer.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    with torch.no_grad():
        fill(convmixer, lambda name: name.rpartition(".")[0] in names)
    for target in (1, 9):
        cam = grad_cam(convmixer, convmixer.blocks[-1], images(28), target)
        show(f"convmixer, Grad-CAM of class {target}:", cam)


if __name__ == "__main__":
    main()
