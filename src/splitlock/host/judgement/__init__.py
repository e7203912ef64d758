"""What each mode would do on a machine: one judgement, for `status` and `advise`."""
