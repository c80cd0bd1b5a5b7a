"""Other libraries' models as noise conditional densities."""

from ncml.densities.adapters.callable import CallableDensity
from ncml.densities.adapters.nflows import NFlowsDensity
from ncml.densities.adapters.zuko import ZukoDensity

__all__ = ["CallableDensity", "NFlowsDensity", "ZukoDensity"]
