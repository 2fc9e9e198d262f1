"""Floor 1: conversions and the door to ComfyUI. Knows no SAM."""
