"""Bochs as a machine with VMX and split-lock detection."""
