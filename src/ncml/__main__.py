"""``python -m ncml``, the command line."""

import sys

from ncml.cli import main

sys.exit(main())
