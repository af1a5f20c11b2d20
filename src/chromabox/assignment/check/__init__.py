"""Comparison of students' models with figure 1 of the assignment: run in a child process, trace, compare, report."""
