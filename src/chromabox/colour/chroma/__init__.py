"""Chroma: CIELab, chroma bins, predicted distributions, and applying chroma to an image."""
