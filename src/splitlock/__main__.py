"""`python -m splitlock`."""

from splitlock.commands import entry

entry()
