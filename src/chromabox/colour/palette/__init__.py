"""Palettes: fitting, reading and writing, nearest-colour lookup."""
