"""From encoded images to batches on the device: the schedule, decoding, augmentation, the loader."""
