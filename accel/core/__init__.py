"""What should be, and why: facts about pods go in, changes to the maps come out.

Pure: standard library only, no I/O, no clock, nothing awaited.  Names no
kernel call and no container runtime; `accel.sources` and `accel.datapath`
translate into these words.
"""
