"""The commands of `qspec`, one per file. What is slow to import is imported when a command runs."""
