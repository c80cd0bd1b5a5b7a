"""Readers of real data sets: images as integers on a lattice, arrays of numbers."""

from ncml.data.arrays import Arrays, read_arrays
from ncml.data.base import DataSet
from ncml.data.digits import ImageData, load_digits
from ncml.data.download import download_cifar10, download_mnist
from ncml.data.files import load_cifar10, load_mnist, read_cifar10, read_idx
from ncml.data.folders import read_image_folder, split_folders
from ncml.data.images import Images
from ncml.data.sources import SOURCES, ArraySource, DataSource, ImageSource, SourceKind, source_settings
from ncml.data.split import Choice, held_out

__all__ = [
    "SOURCES",
    "ArraySource",
    "Arrays",
    "Choice",
    "DataSet",
    "DataSource",
    "ImageData",
    "ImageSource",
    "Images",
    "SourceKind",
    "download_cifar10",
    "download_mnist",
    "held_out",
    "load_cifar10",
    "load_digits",
    "load_mnist",
    "read_arrays",
    "read_cifar10",
    "read_idx",
    "read_image_folder",
    "source_settings",
    "split_folders",
]
