"""`python -m splitlock`."""

from splitlock._start import entry

entry()
