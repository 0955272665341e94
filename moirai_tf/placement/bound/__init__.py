"""Proved lower bounds on the objective, and whether a problem fits into memory at all."""
