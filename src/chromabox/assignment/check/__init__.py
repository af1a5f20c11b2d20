"""Compare students' models with figure 1 of the assignment: run them in a child process, trace them, check them."""
