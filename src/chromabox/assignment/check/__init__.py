"""Comparison of students' models with figure 1 of the assignment, in a child process."""
