"""What each kind of split lock really does, by kernel, mode and processor: measured, a boot after the other."""
