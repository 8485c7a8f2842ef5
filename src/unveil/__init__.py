"""Vision foundation models on your own images: EVA and RevColV2."""
