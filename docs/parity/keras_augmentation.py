"""Prints what Keras's RandomRotation and RandomZoom make of a small image, for the tests of data-cifar.

Versions used: keras 3.15.1 on its torch backend, torch 2.11.0.
    pip install keras torch==2.11.0
    KERAS_BACKEND=torch python docs/parity/keras_augmentation.py
"""

import keras
import numpy as np

image = np.array([[(17 * y * y + 29 * x + 7 * x * y) % 64 for x in range(5)] for y in range(4)], np.float32)
images = np.stack([image, image[::-1]])[..., None]  # [2, 4, 5, 1]


def show(name, values):
    values = np.asarray(keras.ops.convert_to_numpy(values)).reshape(-1)
    print(f"{name}: [{', '.join(f'{v:.5f}' for v in values)}]")


show("images", images)
for layer in [keras.layers.RandomRotation(0.05, seed=3), keras.layers.RandomZoom(0.3, 0.3, seed=4)]:
    drawn = layer.get_random_transformation(images, training=True)
    for key in ["angle", "height_zoom", "width_zoom"]:
        if key in drawn:
            show(key, drawn[key])
    show(type(layer).__name__, layer.transform_images(keras.ops.convert_to_tensor(images), drawn, training=True))
