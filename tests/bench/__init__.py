"""What the bench is made of. tests/test_bench.py has short runs of the whole."""
