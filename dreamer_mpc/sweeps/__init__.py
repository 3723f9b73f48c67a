"""Many runs, and how they are started."""
