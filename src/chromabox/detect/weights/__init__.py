"""Detector weights in Darknet, PyTorch, safetensors and ONNX files."""
