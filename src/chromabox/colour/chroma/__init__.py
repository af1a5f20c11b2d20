"""chroma."""
