"""Fine-tuning of detectors: loss, freezing, feature caches, transfer to new classes, and validation."""
