"""Inference: colourise images, batches of files and videos."""
