"""Contrastive image-text training, and what the space shared by images and texts is good for."""
