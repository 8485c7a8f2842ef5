"""What may be wrong with a set of images: unreadable files, duplicates, odd sizes, overlap with a held-out set."""
