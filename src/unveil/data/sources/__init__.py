"""Sources of images: folders, tar shards, and the protocol that they share."""
