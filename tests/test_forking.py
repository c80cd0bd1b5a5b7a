"""The tests that fork, in a process of their own: a lock that a thread of other tests holds would stay locked there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("session", ["forking_faults", "forking_fuzz"])
def test_a_session_that_forks(session, pytestconfig):
    silenced = [word for rule in pytestconfig.getoption("pythonwarnings") or () for word in ("-W", rule)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *silenced, str(HERE / f"{session}.py")]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert re.search(r"^\d+ passed in ", done.stdout, re.MULTILINE), done.stdout[-1000:]
