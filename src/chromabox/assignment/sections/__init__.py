"""The assignment's questions, each answered by a module of this package from the files of runs."""
