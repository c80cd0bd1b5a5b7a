"""All benchmarks, one table. The peers are optional: rows without theirs say so and are skipped."""

from __future__ import annotations

import checks
import flows
import made
import ncpn
import samplers
import score
import transformer
from common import parser, recorded, show

# Samplers first: they are also measured with the heap of a young process.
BENCHMARKS = (samplers, checks, flows, made, score, transformer, ncpn)


def main() -> None:
    """Run every benchmark and print all figures; record them unless ``--quick``."""
    options = ncpn.add_options(parser(__doc__))
    options.add_argument("--recorded", action="store_true", help="run nothing, print the recorded figures")
    args = options.parse_args()
    if args.recorded:
        reports = [recorded(benchmark.__name__) for benchmark in BENCHMARKS]
    else:
        reports = [benchmark.run(args) for benchmark in BENCHMARKS]
    show(reports)
    if not (args.quick or args.recorded):
        for report in reports:
            report.write()
    figures = [figure for report in reports for figure in report.figures]
    verdicts = [figure.verdict for figure in figures]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("ok", "MISSED", "skipped"))
    print(f"\n{len(figures)} figures: {counts}, {verdicts.count('')} without a target")


if __name__ == "__main__":
    main()
