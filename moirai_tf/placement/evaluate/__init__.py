"""What a placement costs: schedules and makespans of an assignment and an order."""
