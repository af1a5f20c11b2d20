"""Weight files of detectors: Darknet, PyTorch, safetensors, ONNX."""
