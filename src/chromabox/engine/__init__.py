"""Training of any model: training loop, checkpoints, distributed training, autotuning and logging."""
