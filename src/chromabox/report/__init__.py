"""Figures, tables and documents about runs and results."""
