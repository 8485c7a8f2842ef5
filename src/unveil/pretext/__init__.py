"""What is hidden, and what must be predicted."""
