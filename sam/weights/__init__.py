"""Checkpoints: which are known, how they are fetched and read, and what architecture their shapes tell."""
