"""The university assignment: answers, checks of students' code, and a report. Only the command line imports it."""
