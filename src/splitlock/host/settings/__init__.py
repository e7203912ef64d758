"""What is set about split-lock detection, where, and whether it counts."""
