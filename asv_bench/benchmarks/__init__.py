"""Benchmarks of fastalloc beside what one would use instead.

Each file is a topic, each class a job, with the allocator or peer as a parameter. What is not timed stands in `setup`:
allocators are made and pages faulted in there. A benchmark checks that what it timed succeeded, else it raises.
"""
