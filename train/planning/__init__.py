"""What a run needs and how long it takes, before it starts: memory, arithmetic, traffic, and times by a roofline."""
