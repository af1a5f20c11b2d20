"""Training for any model: trainer, checkpoints, distribution, autotuning, logging."""
