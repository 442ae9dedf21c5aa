"""`python -m mooring`."""

from mooring.cli import entry

entry()
