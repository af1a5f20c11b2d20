"""Chroma: CIELAB, chroma bins, predicted distributions, and applying chroma to an image."""
