"""A student's own nets beside figure 1: run in a child process, recorded, and judged."""
