"""Detection datasets: readers, validation, splitting, augmentation, synthetic data."""
