"""Shared by the golden tests."""

import sys
from pathlib import Path

# `--import-mode=importlib` puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parent))
