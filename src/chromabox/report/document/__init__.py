"""A write-up as data, and as the page, the paper and the numbers that it is turned into."""
