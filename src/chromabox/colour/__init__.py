"""Wing 1: a grey picture in, a colour for every pixel out."""
