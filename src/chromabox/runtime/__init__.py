"""Running models: ONNX Runtime sessions and parallel processing."""
