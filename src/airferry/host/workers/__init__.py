"""Units of work, and what runs them: in place, in threads, or in processes of this host.

A unit of work is a function of plain data. What it reads and writes lies content-addressed in the cache, so where it
runs makes no difference to what comes out.
"""
