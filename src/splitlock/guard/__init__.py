"""The gate at load time: a BPF LSM program that judges kernel modules before they link, and what goes with it.

`config` turns a policy into what the gate understands, `gate` loads and pins it, `decisions` and `log` read what
it did, `judge` runs the same code in user space, `fallback` is what is left where the kernel has no BPF LSM.
"""
