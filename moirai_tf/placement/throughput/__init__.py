"""Assignments with a small bottleneck: a relaxation, its rounding, and local search on loads."""
