"""The university assignment: report, checks of students' models, counts and paddings. Only the CLI imports it."""
