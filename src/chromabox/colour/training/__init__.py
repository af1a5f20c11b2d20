"""Training of colourisation models."""
