"""Output for the user: progress, tables, charts, videos, and the doctor."""
