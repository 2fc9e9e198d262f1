"""Models that transformers runs: Grounding DINO, ViTMatte."""
