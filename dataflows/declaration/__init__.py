"""What a user declares: `Pipeline`, features, formats, topics, and the checks of all of it."""
