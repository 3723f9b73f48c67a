"""Episodes under a planner, and comparisons of planners."""
