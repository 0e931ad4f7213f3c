"""Checks that TensorBoard reads event files as they were meant.

The files are those in crates/trainer/tests/tensorboard, which a test of the trainer writes again and compares
byte by byte. The second one is of a process that repeats what the first one did from step 2 on.

Versions used: tensorboard 2.21.0, protobuf 7.36.2, numpy 2.4.6, pillow 13.0.0.
    pip install tensorboard pillow
    python docs/parity/tensorboard_reading.py
"""

import io
import logging
import pathlib
import shutil
import sys
import tempfile

import numpy as np
import tensorboard
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import HistogramProto
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.util import tensor_util

FILES = pathlib.Path(__file__).parents[2] / "crates" / "trainer" / "tests" / "tensorboard"
EVERYTHING = {"scalars": 0, "histograms": 0, "images": 0, "tensors": 0}


def weights():
    values = [np.float32((i * i * 7 % 1013 - 500) / 512) for i in range(1000)]
    return np.array(values + [0, 1e-13, -1e-13, 1e20, -1e20, 3e38], np.float32)  # without NaN and infinity


def pixels(*shape):
    return (np.arange(np.prod(shape)) * 37 % 256).astype(np.uint8).reshape(shape)


def expected_histogram(values):
    """TensorBoard's exponential buckets, the filled ones only: (lower limit, upper limit, count)."""
    positive = [1e-12]
    while positive[-1] * 1.1 < 1e20:
        positive.append(positive[-1] * 1.1)
    largest = np.finfo(np.float64).max
    limits = np.array([-largest, *(-v for v in reversed(positive)), 0, *positive, largest])
    counts, _ = np.histogram(values.astype(np.float64), limits)
    return [(limits[i], limits[i + 1], count) for i, count in enumerate(counts) if count]


def filled(histogram):
    lower = [None, *histogram.bucket_limit[:-1]]
    buckets = zip(lower, histogram.bucket_limit, histogram.bucket, strict=True)
    return [bucket for bucket in buckets if bucket[2]]


def check_histogram(histogram, values):
    wide = values.astype(np.float64)
    assert filled(histogram) == expected_histogram(values)
    assert (histogram.min, histogram.max, histogram.num) == (wide.min(), wide.max(), len(wide))
    assert np.isclose(histogram.sum, wide.sum(), rtol=1e-12)
    assert np.isclose(histogram.sum_squares, (wide * wide).sum(), rtol=1e-12)


def check_image(encoded, expected):
    image = Image.open(io.BytesIO(encoded))
    image.verify()  # the sums of all parts
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encoded))), expected)


def records(file):
    reader = PyRecordReader_New(str(file))
    while True:
        try:
            reader.GetNext()  # checks the sums
        except Exception as end:  # the reader says that the file is over by a class of its own
            assert type(end).__name__ == "OutOfRangeError", end
            return
        yield reader.record()


def check_encoding():
    """Every record is what protobuf itself makes of the same event."""
    count = 0
    for file in sorted(FILES.iterdir()):
        for index, record in enumerate(records(file)):
            event = Event.FromString(record)
            assert event.SerializeToString(deterministic=True) == record
            assert (event.file_version == "brain.Event:2") == (index == 0)
            count += 1
    print(f"{count} records are as protobuf writes them")


def check_values(accumulator):
    accumulator.Reload()
    losses = {event.step: event.value for event in accumulator.Scalars("train/loss")}
    wanted = {0: np.float32(2.5), 1: np.float32(2.5) - np.float32(1) * np.float32(0.3)}
    assert losses == {**wanted, **{step: -step for step in range(2, 300)}}
    assert [event.wall_time for event in accumulator.Scalars("train/loss")][:3] == [1.7e9 + 0.25] * 2 + [1.7e9 + 0.75]
    assert [(e.step, e.value) for e in accumulator.Scalars("top1")] == [(0, 0), (1, np.float32(1) / np.float32(3))]

    (first, second) = accumulator.Histograms("weights")
    assert (first.step, second.step) == (1, 2)
    check_histogram(first.histogram_value, weights())
    check_histogram(second.histogram_value, np.array([0, -0.5], np.float32))

    (rgb,), (grey,) = accumulator.Images("rgb"), accumulator.Images("grey")
    assert (rgb.step, rgb.width, rgb.height) == (1, 3, 2) and (grey.step, grey.width, grey.height) == (1, 2, 5)
    check_image(rgb.encoded_image_string, pixels(2, 3, 3))
    check_image(grey.encoded_image_string, pixels(5, 2))
    print("scalars, histograms and images are exact; what the second process repeated is there once")


def check_plugins(accumulator):
    """The reader behind TensorBoard's pages, which turns everything into tensors."""
    accumulator.Reload()
    losses = accumulator.Tensors("train/loss")
    assert [event.step for event in losses] == list(range(300))
    assert tensor_util.make_ndarray(losses[299].tensor_proto) == -299
    buckets = tensor_util.make_ndarray(accumulator.Tensors("weights")[0].tensor_proto)
    assert buckets[:, 2].sum() == len(weights())
    width, height, image = tensor_util.make_ndarray(accumulator.Tensors("rgb")[0].tensor_proto)
    assert (int(width), int(height)) == (3, 2)
    check_image(image, pixels(2, 3, 3))
    print("and so they are for the pages")


def check_killed(folder):
    """A process that is killed leaves half a record; what comes after it in other files is read."""
    for file in FILES.iterdir():
        shutil.copy(file, folder)
    first = sorted(pathlib.Path(folder).iterdir())[0]
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) - 5])
    accumulator = event_accumulator.EventAccumulator(folder, EVERYTHING).Reload()
    assert len(accumulator.Scalars("train/loss")) == 300
    print("half a record at the end of a file hides no other file")


if __name__ == "__main__":
    print(f"tensorboard {tensorboard.__version__}, numpy {np.__version__}")
    logging.disable(logging.WARNING)  # it warns of what it drops
    check_encoding()
    check_values(event_accumulator.EventAccumulator(str(FILES), EVERYTHING))
    check_plugins(plugin_event_accumulator.EventAccumulator(str(FILES), EVERYTHING))
    with tempfile.TemporaryDirectory() as folder:
        check_killed(folder)
    sys.exit(0)
