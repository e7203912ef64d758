"""A machine: what it is (`status`), what its kernel logs (`sources`, `watch`), and whose code that was (`explain`)."""
