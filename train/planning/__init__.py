"""What a run needs and how long it takes, told before it starts."""
