"""The 35 zero-shot benchmarks of the paper (section 2.3.5, Table 10b and the list it links to): layouts and tables."""
