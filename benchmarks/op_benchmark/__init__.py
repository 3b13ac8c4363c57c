"""What `benchmarks/op.py` is made of: the work, its peers, clocks, memory, and the report."""
