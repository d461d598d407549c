"""The messages of all topics: events and labels, outputs, control, and why some can't be used."""
