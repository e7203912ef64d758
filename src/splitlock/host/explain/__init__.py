"""What one logged address means."""
