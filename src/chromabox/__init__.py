"""Chromabox colours grey pictures by classifying every pixel into a palette."""

__version__ = "0.1.0"
