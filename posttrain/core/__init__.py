"""What everything shares: errors, settings, the one data shape."""
