"""CPU kernels: each `.cpp` beside the launcher of the same name, one library per instruction set."""
