"""Checkpoints and ONNX files of colourisation models."""
