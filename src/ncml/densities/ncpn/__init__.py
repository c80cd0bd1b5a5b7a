"""The noise conditional pixel network (paper, section 5 and appendix A.1)."""

from ncml.densities.ncpn.ncpn import NCPN
from ncml.densities.ncpn.settings import NCPNSettings

__all__ = ["NCPN", "NCPNSettings"]
