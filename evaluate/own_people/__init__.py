"""One's own people: their faces, figures of 1:1 and 1:N among them, and who is taken for whom."""
