"""From images to features: networks, embedding, extraction."""
