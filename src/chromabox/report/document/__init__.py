"""Documents as data, and their conversion to HTML, PDF and JSON."""
