"""Image files, arrays and tensors -> RGB pixels -> the encoder's input batch."""

from samfast.images.batching import Batcher, to_batch
from samfast.images.load import ImageLike, Images, LoadedImage, load_bytes, load_image
from samfast.images.resize import input_size, resize_image

__all__ = [
    "Batcher",
    "ImageLike",
    "Images",
    "LoadedImage",
    "input_size",
    "load_bytes",
    "load_image",
    "resize_image",
    "to_batch",
]
