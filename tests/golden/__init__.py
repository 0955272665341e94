"""Text that must not change unnoticed; every file begins with the command that makes it."""
