"""Errors by quality of the images and by group of people, of verification sets and of templates."""
