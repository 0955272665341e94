"""The published mixed integer program: one solver-neutral model, two backends."""
