"""Methods side by side: what was measured, what the paper printed, what it cost."""
