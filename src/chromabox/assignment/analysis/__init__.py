"""Analyses of trained models for the answers of the assignment."""
