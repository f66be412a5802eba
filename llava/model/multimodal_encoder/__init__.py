"""Vision towers: images to `VisionFeatures`."""
