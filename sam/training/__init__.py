"""Teaching: learned prompts, and the mask decoder itself, on embeddings that are made once."""
