"""Running models: ONNX Runtime sessions and parallel processing."""

import os

# ONNX Runtime's telemetry starts when it is imported, and only this variable prevents it. Its thread would also make
# forked processes hang when they exit.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
