"""Open: an object file becomes an ObjectSpec.  Pure but for reading the file."""
