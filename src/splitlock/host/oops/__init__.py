"""An oops by a split lock, explained."""
