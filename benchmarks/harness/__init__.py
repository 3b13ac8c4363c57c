"""What all benchmarks share: fair clocks, peak memory, facts of the machine, detectors at work."""
