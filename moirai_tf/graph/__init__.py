"""One flat operator graph per signature, read from protobufs without executing anything."""
