"""Exact placement block by block: what lies between two cuts never meets what lies elsewhere."""
