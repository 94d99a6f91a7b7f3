"""Runs the launcher: `python -m experiments`."""

import sys

from experiments.launcher import main

sys.exit(main())
