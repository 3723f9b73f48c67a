"""What a planner's gradient is worth: measures of trained agents on the real simulator, as `run.py analyze`."""
