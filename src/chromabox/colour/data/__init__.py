"""Datasets for colourisation."""
