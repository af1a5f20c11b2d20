"""Evaluation of detectors: matching, average precision, confidence intervals."""
