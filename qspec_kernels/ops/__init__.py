"""The public ops, one file each: schema, fake kernel, checks. What computes is in `backends`."""
