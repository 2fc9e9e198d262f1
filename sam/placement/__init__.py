"""Where models run and where results go: in ComfyUI through its memory manager, elsewhere by hand."""
