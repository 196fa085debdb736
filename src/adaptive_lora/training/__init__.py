"""One adapter trained on a frozen base: the plain reference engine."""
