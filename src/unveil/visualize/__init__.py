"""Pictures of what a network sees, and the report that shows them."""
