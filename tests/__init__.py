"""The tests, which mirror the rooms they test."""

import os

# Read when torch and numpy are imported, also by the commands that tests start. Beside a second worker of pytest,
# threads that wait for one another take longer than one alone.
os.environ.setdefault("OMP_NUM_THREADS", "1")
