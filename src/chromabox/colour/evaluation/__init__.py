"""Evaluation of colourisation models and of colourised images."""
