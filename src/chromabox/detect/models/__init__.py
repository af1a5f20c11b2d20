"""Detector architectures, their PyTorch model, and the decoding of the model outputs."""
