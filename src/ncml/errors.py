"""Errors of the public interface.

Every error is an :class:`NCMLError` *and* the builtin that a caller would expect, so both
``except NCMLError`` and ``except ValueError`` work. Messages name the argument, what was got,
what was expected, and the remedy. They are raised before any state changes.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "CheckpointError",
    "ColumnScaleWarning",
    "ConformanceError",
    "DatasetError",
    "FailedRowsWarning",
    "InferenceTensorError",
    "LatticeDataWarning",
    "LeftOutWarning",
    "MissingExtraError",
    "NCMLError",
    "NonFiniteError",
    "UnsupportedError",
]


class NCMLError(Exception):
    """Base class of every error that ncml raises on purpose."""


class ArgumentError(NCMLError, ValueError):
    """An argument has a value, shape or device that the call cannot accept."""


class ArgumentTypeError(NCMLError, TypeError):
    """An argument has a type or dtype that the call cannot accept."""


class UnsupportedError(NCMLError, TypeError):
    """An object lacks the capability that the call needs (sampling, an SDE, a lattice, ...)."""


class NonFiniteError(NCMLError, FloatingPointError):
    """A log-density, score or loss is NaN or infinite."""


class InferenceTensorError(NCMLError, RuntimeError):
    """Parameters created under ``torch.inference_mode`` cannot take part in autograd."""


class DatasetError(NCMLError, OSError):
    """A file of a data set is missing, truncated, or not what it should be; the message names it."""


class CheckpointError(NCMLError, OSError):
    """A checkpoint is missing, damaged, or of another model; the message names the file."""


class MissingExtraError(NCMLError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class ConformanceError(NCMLError, AssertionError):
    """Checks of :mod:`ncml.testing` failed; the message names each of them, and says what it got and expected.

    Attributes:
        report: The :class:`ncml.testing.Report` of all that was checked.
    """

    report: Any = None


class LatticeDataWarning(UserWarning):
    """Training data lie on a few evenly spaced values, where the likelihood of a continuous model is unbounded."""


class ColumnScaleWarning(UserWarning):
    """Data are not of order one, or columns of a table have no spread, or too different ones for noise of one size."""


class LeftOutWarning(UserWarning):
    """Files in a folder of data were left out, since files of their kind are not read."""


class FailedRowsWarning(UserWarning):
    """Some samples failed during a refinement that keeps the others; they are NaN."""
