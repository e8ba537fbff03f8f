"""What the files say, bit by bit: ELF, BTF, instructions, section names.  Pure."""
