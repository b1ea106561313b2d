"""Seconds on a GPU, computed from counts and shapes; nothing of it was run on one."""
