"""One folder per backend; `dispatch` finds a kernel by its path."""
