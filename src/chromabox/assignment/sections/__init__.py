"""Sections of the assignment's report, one module per group of questions."""
