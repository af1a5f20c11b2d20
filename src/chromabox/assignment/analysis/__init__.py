"""Analyses of trained models for the assignment report."""
