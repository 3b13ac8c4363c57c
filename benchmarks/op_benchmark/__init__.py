"""What `benchmarks/op.py` is made of: the work, its peers, and the report."""
