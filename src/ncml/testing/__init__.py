"""Checks that you run on your own processes, densities and samplers.

``check_noise_process``, ``check_density`` and ``check_sampler`` hold an object against the contract of its
interface and, where there is one, against the mathematics: they raise
:class:`~ncml.errors.ConformanceError` at the first check that fails, naming it, and return a
:class:`Report` of what was checked and what does not apply. They see nothing but the interfaces, so that
your classes are treated like the bundled ones. :mod:`ncml.testing.strategies` generates inputs for
property-based tests (needs hypothesis, the extra ``ncml[testing]``).
"""

from ncml.testing._common import Report
from ncml.testing.densities import check_density
from ncml.testing.processes import check_noise_process
from ncml.testing.samplers import check_sampler

__all__ = ["Report", "check_density", "check_noise_process", "check_sampler"]
