"""Benchmarks that anyone can repeat: each measures Shoal and a peer in turn, in one run, on one machine."""
