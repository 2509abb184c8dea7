"""What is printed of a case, and what the README shows of it."""
