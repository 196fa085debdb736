"""What the numbers of a study say, and how surely."""
