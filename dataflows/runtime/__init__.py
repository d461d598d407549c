"""Worker processes: one worker, its supervisor, and how a process ends."""
