"""What operators and transfers cost, and the placement problem that follows."""
