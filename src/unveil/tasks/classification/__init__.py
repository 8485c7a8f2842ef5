"""Image classification: the task, and what frozen features are worth."""
