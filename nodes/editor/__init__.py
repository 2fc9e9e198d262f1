"""The prompt editor's server half: its text, the live preview, and the routes on ComfyUI's server."""
