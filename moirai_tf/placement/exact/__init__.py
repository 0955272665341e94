"""Searches that prove what they find: the integer program, and blocks between cuts."""
