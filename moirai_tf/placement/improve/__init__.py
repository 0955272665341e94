"""Simulated annealing of windows of a list schedule, in machine code."""
