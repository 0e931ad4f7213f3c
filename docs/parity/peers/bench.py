"""Times one network in one variant of PyTorch or ONNX Runtime, and prints a line of JSON.

`cargo xtask bench --against pytorch` starts it once for every variant and round, in a process of its own. A training
step is what a Python user would write: forward, cross-entropy, backward, fused AdamW, on images that lie ready in
memory; the loss is the recipe's, the gradients are zeroed by setting them to None.

`--check WEIGHTS INPUT OUTPUT` compares logits with those of `trainer forward` instead.
"""

import argparse
import json
import resource
import time

import torch
import torch.nn.functional as F

from networks import NETWORKS


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=NETWORKS, required=True)
    parser.add_argument("--work", choices=["train", "infer"], default="train")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--plain-attention", action="store_true")
    parser.add_argument("--compile", choices=["no", "default", "reduce-overhead"], default="no")
    parser.add_argument("--onnxruntime", action="store_true")
    parser.add_argument("--check", nargs=3)
    return parser.parse_args()


def step_of(args, network, images, labels):
    """A function that makes one step, and waits for it."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    # On the processor PyTorch chooses oneDNN's kernels by the types alone; caching casts saves those of the weights.
    autocast = lambda: torch.autocast(images.device.type, torch.bfloat16, enabled=args.bf16)
    modes = {"default": None, "reduce-overhead": "reduce-overhead"}
    forward = network if args.compile == "no" else torch.compile(network, mode=modes[args.compile])

    def train():
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            logits = forward(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=args.label_smoothing)
        loss.backward()
        optimizer.step()
        return loss.item()

    def infer():
        with torch.inference_mode(), autocast():
            return forward(images).sum().item()

    return train if args.work == "train" else infer


def onnxruntime_step(network, images, threads):
    import io

    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(network, images[:2], file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "b"}})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    array = images.numpy()
    return lambda: session.run(None, {"x": array})[0].sum()


def main():
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    # PyTorch's default is TF32 for convolutions alone.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    make, side = NETWORKS[args.model]
    network = make(args.plain_attention).to(args.device)
    if args.check:
        from safetensors.torch import load_file

        weights, source, wanted = args.check
        network.load_state_dict(load_file(weights), strict=True)
        with torch.no_grad():
            logits = network.eval()(load_file(source)["input"])
        wanted = load_file(wanted)["logits"]
        print(json.dumps({"difference": ((logits - wanted).abs().max() / wanted.abs().max()).item()}))
        return
    network.train(args.work == "train")
    images = torch.rand(args.batch, 3, side, side, device=args.device)
    if args.channels_last:
        network, images = (x.to(memory_format=torch.channels_last) for x in (network, images))
    labels = torch.randint(5, (args.batch,), device=args.device)
    if args.onnxruntime:
        step = onnxruntime_step(network, images, args.threads or torch.get_num_threads())
    else:
        step = step_of(args, network, images, labels)
    for _ in range(args.warm_up):
        step()
    times, started = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - started < args.seconds:
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    times.sort()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if args.device != "cpu":
        memory = torch.cuda.max_memory_allocated() / 2**20
    median = times[len(times) // 2]
    result = {"images_per_second": args.batch / median, "steps": len(times), "peak_memory_mb": memory}
    print(json.dumps(result))


main()
