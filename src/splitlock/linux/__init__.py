"""What Linux says and does: the lowest room, which imports nothing of ours."""
