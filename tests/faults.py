"""What may befall a run: ``python -m tests.faults --kills 200 --out report.json``.

A small training is killed at random instants, meets a full disk, a folder that it may not write to, a clock that jumps,
another run in its folder. Whatever happens, the checkpoints that are there load, and the resumed run ends with the very
weights, moments and log of one that nothing befell. Runs are forked from this process, which has imported everything:
it did the undisturbed run itself.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ncml.cli import main as ncml
from ncml.errors import CheckpointError
from ncml.report import environment, write_report
from ncml.training import open_checkpoint, read_metrics
from tests.training_problems import same_state

STEPS = 30
ARGUMENTS = f"""
    --data.name digits --model.name made --model.hidden 16 --noise.std-in-levels 2 --optim.steps {STEPS}
    --optim.batch-size 8 --optim.warmup 2 --run.threads 1 --run.accelerator cpu --run.log-every 1 --run.save-every 2
    --run.validate-every 10 --run.validate-images 16 --run.sample-every 15 --run.samples 4
""".split()
NOBODY = 65534
FILE_SIZES = (0, 100, 2000, 20_000, 100_000)  # bytes that fit on a disk that is then full


def train(folder: Path, *more: str) -> list[str]:
    return ["train", "--out", str(folder), "--resume", *ARGUMENTS, *more]


def forked(work: Callable[[], int], output: Path) -> int:
    """Start some work in a process of its own; returns its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the child does not use
        child = os.fork()
    if child == 0:
        status = 70
        try:
            sys.stdout = sys.stderr = open(output, "w", encoding="utf-8")  # noqa: SIM115 -- for the rest of its life
            status = work()
        except BaseException as error:
            print(f"Traceback: {error!r}", flush=True)
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os._exit(status)
    return child


def finished(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Faults:
    """The faults, each of which returns what a report says of it; ``failed`` are the properties that did not hold."""

    def __init__(self, scratch: Path, seed: int) -> None:
        self.scratch, self.draw = scratch, random.Random(seed)
        self.failed: list[str] = []
        self.reference = scratch / "reference"
        with contextlib.redirect_stdout(io.StringIO()):
            self.expect(ncml(train(self.reference)) == 0, "an undisturbed run ends")
        self.state = open_checkpoint(self.reference)
        start = time.monotonic()
        self.same_as_undisturbed(scratch / "again", "a second run")
        self.seconds = time.monotonic() - start

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.failed.append(what)

    def run(self, folder: Path, before: Callable[[], None] = lambda: None, *more: str) -> int:
        """A run from start to end; its exit status."""

        def work() -> int:
            before()
            return ncml(train(folder, *more))

        return finished(forked(work, self.scratch / "output"))

    @property
    def output(self) -> str:
        return (self.scratch / "output").read_text(errors="replace")

    def same_as_undisturbed(self, folder: Path, what: str) -> None:
        """Run to the end, and compare with the undisturbed run, bit for bit."""
        if not (folder / "report.json").exists():
            self.expect(self.run(folder) == 0, f"{what}: the resumed run ends: {self.output[-300:]}")
        try:
            found = open_checkpoint(folder)
        except CheckpointError as error:
            self.expect(False, f"{what}: {error}")
            return
        same = same_state(found.model(), self.state.model()) and same_state(found.training(), self.state.training())
        losses = [[line.get("loss") for line in read_metrics(f / "metrics.jsonl")] for f in (folder, self.reference)]
        self.expect(same and found.step == STEPS, f"{what}: the same weights and moments as undisturbed")
        self.expect(losses[0] == losses[1], f"{what}: the same log as undisturbed")

    def refused(self, status: int, what: str, *words: str) -> None:
        """Status 2 and a message, with one of the words if there are some."""
        self.expect(status == 2, f"{what}: status 2, not {status}: {self.output[-300:]}")
        said = any(word in self.output for word in words or ("ncml: ",))
        self.expect(said and "Traceback" not in self.output, f"{what}: a message: {self.output[-300:]}")

    # The faults.

    def kills(self, n: int) -> dict[str, Any]:
        """kill -9 at random instants; what is there loads at once."""
        folder, done, runs, steps = self.scratch / "killed", 0, 0, []
        while done < n:
            child = forked(lambda: ncml(train(folder)), self.scratch / "output")
            deadline = time.monotonic() + self.draw.uniform(0.0, 1.2 * self.seconds)
            while (
                time.monotonic() < deadline and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
            ):
                time.sleep(0.001)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            status = finished(child)
            self.expect(status in (0, -signal.SIGKILL), f"kill {done}: status {status}: {self.output[-300:]}")
            done += status != 0
            complete = list((folder / "checkpoints").glob("step_*"))
            steps.append(open_checkpoint(folder).step if complete else 0)
            print(f"{done} of {n} kills, the last one at step {steps[-1]}", file=sys.stderr)
            if status == 0 or done == n:
                self.same_as_undisturbed(folder, f"after {done} kills")
                shutil.rmtree(folder)
                runs += 1
        return {"kills": done, "runs": runs, "at_steps": sorted(set(steps))}

    def full_disk(self) -> dict[str, Any]:
        """Files that may not grow beyond so many bytes; and a file system that is full, where one can be made."""
        for size in FILE_SIZES:
            folder = self.scratch / f"full-{size}"

            def limit(size: int = size) -> None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

            status = self.run_quietly(folder, limit)
            if status != 0:
                self.expect(status == 2, f"files of {size} bytes: status 2, not {status}")
            leftovers = [path.name for path in folder.rglob("*.tmp")]
            self.expect(leftovers == [], f"files of {size} bytes: nothing half written is left: {leftovers}")
            self.same_as_undisturbed(folder, f"files of {size} bytes")
        with self.small_disk() as disk:
            if disk is not None:
                status = self.run(disk / "run")
                self.refused(status, "a full file system", "No space left on device")
                shutil.copytree(disk / "run", self.scratch / "rescued")
                self.same_as_undisturbed(self.scratch / "rescued", "a full file system")
        return {"file_sizes": FILE_SIZES, "full_file_system": disk is not None}

    def run_quietly(self, folder: Path, before: Callable[[], None]) -> int:
        """A run whose output goes nowhere, since it may not write any."""

        def work() -> int:
            before()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
                status = ncml(train(folder))
            return status if status == 0 or said.getvalue().startswith("ncml: ") else 71

        return finished(forked(work, self.scratch / "output"))

    @contextlib.contextmanager
    def small_disk(self) -> Iterator[Path | None]:
        """A file system of 64 kB; None where this user may not mount one."""
        disk = self.scratch / "disk"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
        try:
            mounted = subprocess.run(command, capture_output=True).returncode == 0
        except OSError:
            mounted = False
        try:
            yield disk if mounted else None
        finally:
            if mounted:
                subprocess.run(["umount", str(disk)], check=True)

    def read_only(self) -> dict[str, Any]:
        """A folder that others own; who may write everywhere becomes somebody else first."""
        outer = self.scratch / "theirs"
        outer.mkdir(mode=0o555)
        (self.scratch / "output").chmod(0o666)

        def somebody() -> None:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)

        status, what = self.run(outer / "run", somebody), "a folder that may not be written to"
        self.refused(status, what, "may be written to", "Permission denied")  # the latter where it cannot be looked at
        self.expect(list(outer.iterdir()) == [], "a folder that may not be written to: nothing is left")
        return {"as_root": os.geteuid() == 0}

    def two_runs(self) -> dict[str, Any]:
        """A second run in the folder of one that is going on is refused, and changes nothing."""
        folder = self.scratch / "shared"
        first = forked(lambda: ncml(train(folder)), self.scratch / "first")
        while not (folder / "checkpoints").exists():
            time.sleep(0.005)
        os.kill(first, signal.SIGSTOP)
        before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
        self.refused(self.run(folder, lambda: None, "--optim.learning-rate", "0.5"), "a second run", "another process")
        self.expect({p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before, "a second run: nothing changed")
        os.kill(first, signal.SIGCONT)
        self.expect(finished(first) == 0, "two runs: the first one ends")
        self.same_as_undisturbed(folder, "two runs")
        return {}

    def clock(self) -> dict[str, Any]:
        """The time of day goes backwards, and files are from the future or from 1970."""
        folder, draw = self.scratch / "clock", random.Random(0)

        def jumping() -> None:
            time.time = lambda: draw.uniform(-1e9, 4e9)
            signal.setitimer(signal.ITIMER_REAL, 0.6 * self.seconds)
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))

        self.run(folder, jumping)
        for i, path in enumerate(sorted(folder.rglob("*"))):
            os.utime(path, ns=((0, 0), (4 * 10**18, 4 * 10**18))[i % 2])
        self.same_as_undisturbed(folder, "a clock that jumps")
        return {}

    def locale(self) -> dict[str, Any]:
        """A system without UTF-8, and a folder whose name needs it; an interpreter of its own."""
        folder = self.scratch / "l\u00e4uft \u03c3=2"
        plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LANG": "C"}
        command = [sys.executable, "-m", "ncml.cli", *train(folder)]
        done = subprocess.run(command, env={**os.environ, **plain}, capture_output=True)
        self.expect(done.returncode == 0, f"locale C: {done.stderr[-300:]!r}")
        self.same_as_undisturbed(folder, "locale C")
        return {}


def faults(scratch: Path, kills: int, seed: int = 0, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """Let everything happen; the report says what did not hold."""
    those = Faults(scratch, seed)
    report: dict[str, Any] = {"seed": seed, "seconds_of_a_run": those.seconds}
    every: dict[str, Callable[[], dict[str, Any]]] = {
        "kills": lambda: those.kills(kills),
        "full disk": those.full_disk,
        "read-only folder": those.read_only,
        "two runs": those.two_runs,
        "clock": those.clock,
        "locale": those.locale,
    }
    for name, work in every.items():
        if not only or name in only:
            report[name] = work()
    report["failed"] = those.failed
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--out", type=Path, default=Path("faults.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        report = faults(Path(scratch), args.kills, args.seed, tuple(args.only))
    write_report(args.out, {**report, "environment": environment()})
    for what in report["failed"]:
        print(f"FAILED {what}")
    print(f"{args.out}: {len(report['failed'])} of the properties failed")
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
