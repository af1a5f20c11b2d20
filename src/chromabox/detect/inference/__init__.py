"""Inference: detect objects in images, batches of files and videos."""
