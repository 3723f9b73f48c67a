"""Output for the user: tables, displays, charts, videos, and the doctor."""
