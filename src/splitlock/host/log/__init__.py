"""The kernel's log: where it comes from, how it is wrapped, what it says, how whole it is."""
