"""``python -m ncml.cli``, which ``torchrun -m ncml.cli`` starts on every process."""

import sys

from ncml.cli import main

sys.exit(main())
