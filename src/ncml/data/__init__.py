"""Readers of real data sets: images as integers on a lattice, arrays of numbers, recordings and series."""

from ncml.data.arrays import Arrays, read_arrays
from ncml.data.base import DataSet, DataSource
from ncml.data.digits import ImageData, load_digits
from ncml.data.download import download_cifar10, download_mnist
from ncml.data.files import load_cifar10, load_mnist, read_cifar10, read_idx
from ncml.data.folders import read_image_folder, split_folders
from ncml.data.images import Images
from ncml.data.sequences import AudioSource, SeriesSource
from ncml.data.sources import SOURCES, ArraySource, ImageSource, SourceKind, source_settings
from ncml.data.split import Choice, held_out
from ncml.data.wav import Wav, open_wav, write_wav
from ncml.data.windows import Windows, cut_windows

__all__ = [
    "SOURCES",
    "ArraySource",
    "Arrays",
    "AudioSource",
    "Choice",
    "DataSet",
    "DataSource",
    "ImageData",
    "ImageSource",
    "Images",
    "SeriesSource",
    "SourceKind",
    "Wav",
    "Windows",
    "cut_windows",
    "download_cifar10",
    "download_mnist",
    "held_out",
    "load_cifar10",
    "load_digits",
    "load_mnist",
    "open_wav",
    "read_arrays",
    "read_cifar10",
    "read_idx",
    "read_image_folder",
    "source_settings",
    "split_folders",
    "write_wav",
]
