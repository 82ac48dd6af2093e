// Nothing of its own: the target that owns the tests' precompiled headers must compile something.
