"""What a user sees: progress, tables, charts, videos, the doctor."""
