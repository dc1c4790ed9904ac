"""Vectors to people: comparisons, the basis that they share, everybody's mixture, how well it does."""
