"""Images in, batches out: sources, decoding, sample order, crops and the loader."""
