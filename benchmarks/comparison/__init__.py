"""Methods trained side by side: a grid of runs, what each one found, and the tables they make."""
