"""What outlives every process: counts and the facts of each flow, in shared memory."""
