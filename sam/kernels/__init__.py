"""Exact, fast arithmetic on weights and tensors; knows no model family and no task."""
