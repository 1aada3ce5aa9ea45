"""The data room: named datasets, the user's own files and the starter corpus in one schema."""
