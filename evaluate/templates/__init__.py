"""The figures of templates: of pairs of them, and of a search among them."""
