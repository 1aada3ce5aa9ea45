"""Bulk classification: files in, one answer for each row out. No Ray in here."""
