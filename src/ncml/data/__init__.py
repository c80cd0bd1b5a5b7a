"""Readers of real data sets, as integers on a lattice."""

from ncml.data.digits import ImageData, load_digits
from ncml.data.download import download_cifar10, download_mnist
from ncml.data.files import load_cifar10, load_mnist, read_cifar10, read_idx
from ncml.data.folders import read_image_folder
from ncml.data.images import Images, ImageSource

__all__ = [
    "ImageData",
    "ImageSource",
    "Images",
    "download_cifar10",
    "download_mnist",
    "load_cifar10",
    "load_digits",
    "load_mnist",
    "read_cifar10",
    "read_idx",
    "read_image_folder",
]
