"""Foundation: what comes from disk and network."""
