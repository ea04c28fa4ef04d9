"""Models, their names and their blocks."""
