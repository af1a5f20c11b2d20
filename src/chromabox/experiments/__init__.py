"""Grids of training runs: comparisons of models and sweeps over one hyperparameter."""
