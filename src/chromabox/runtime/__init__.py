"""Running models: ONNX Runtime sessions and parallel processing."""

import os

# ONNX Runtime starts its telemetry when it is imported, unless this variable is set. The telemetry thread would also
# make forked processes hang when they exit.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
