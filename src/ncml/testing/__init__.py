"""Checks that you run on your own processes, densities and samplers.

``check_noise_process``, ``check_density`` and ``check_sampler`` hold an object against the contract of its
interface and, where there is one, against the mathematics. They run every check there is, raise one
:class:`~ncml.errors.ConformanceError` that lists all that fail, and return a :class:`Report` of what was checked
and what does not apply. They see nothing but the interfaces, so that your classes are treated like the bundled ones.

Statistical checks have fixed seeds and a nominal false-alarm probability of 1e-9 for each comparison. A run makes some
tens of them for a process or a sampler, and some hundreds for a density (one for each time, wave, mode, drawn time,
tail, column of a context, or family of pairs of rows), so that a false alarm of the whole run has a probability of the
order of 1e-7. Bounds on ranks, counts, importance weights and pairs hold without approximation or nearly so; those on
means take averages of hundreds of values for normal.

``process_checks``, ``density_checks`` and ``sampler_checks`` are the same checks as a list, one test each for a
suite of your own. :mod:`ncml.testing.strategies` generates inputs for property-based tests (needs hypothesis, the
extra ``ncml[testing]``).
"""

from ncml.testing.density import check_density, density_checks
from ncml.testing.process import check_noise_process, process_checks
from ncml.testing.report import Check, Report
from ncml.testing.sampler import check_sampler, sampler_checks

__all__ = [
    "Check",
    "Report",
    "check_density",
    "check_noise_process",
    "check_sampler",
    "density_checks",
    "process_checks",
    "sampler_checks",
]
