"""What an image's code looks like, by a small C library: functions, sites, branches, entries."""
