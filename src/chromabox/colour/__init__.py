"""Colourisation: greyscale image in, colours out."""
